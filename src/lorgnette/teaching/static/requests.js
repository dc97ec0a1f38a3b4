/* Requests to the server of teach, and the state that it sends whenever something changes. */

/** The server does not answer. */
export class Gone extends Error {}

/** The server says no. status: of HTTP; code: what programs look at. */
export class Refusal extends Error {
  constructor(message, status, code) {
    super(message);
    Object.assign(this, { status, code });
  }
}

const request = async (address, options) => {
  let response, body;
  try {
    response = await fetch(address, options);
    body = await response.json();
  } catch {
    if (!response || response.ok) throw new Gone("The server does not answer.");
  }
  if (response.ok) return body;
  throw new Refusal(body?.error?.message ?? `the server answered ${response.status}`, response.status, body?.error?.code);
};

export const post = (action, body) =>
  request(`/${action}`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

/** Why an image is not shown, in the server's words. */
export const readImageProblem = async (address) => {
  try {
    await request(address);
    return "this browser does not show it";
  } catch (error) {
    return error.message;
  }
};

/** A browser opens six connections to a server, and each page that follows the state keeps one. */
const waitUntilSeen = () => new Promise((resolve) => {
  const look = () => {
    if (document.hidden) return;
    document.removeEventListener("visibilitychange", look);
    resolve();
  };
  document.addEventListener("visibilitychange", look);
  look();
});

const RETRY_SECONDS = [1, 2, 4, 8, 15];

/** Follows the state for ever. `connect` is called before the first state, and before the one after a loss. */
export class StateFeed {
  #hurry = () => {};

  constructor({ tab, connect, onState, onLost }) {
    Object.assign(this, { tab, connect, onState, onLost });
  }

  async follow() {
    for (let version = -1, numFailures = 0; ;) {
      await waitUntilSeen();
      try {
        if (version < 0) await this.connect();
        const state = await this.read(version);
        [version, numFailures] = [state.version, 0];
        this.onState(state);
      } catch (error) {
        if (!(error instanceof Gone || error instanceof Refusal)) throw error;
        version = -1;
        this.onLost(error);
        await this.#pause(RETRY_SECONDS[Math.min(numFailures++, RETRY_SECONDS.length - 1)]);
      }
    }
  }

  /** The state once it is newer than `version`, or after some time. */
  read(version = -1) { return request(`/state?tab=${this.tab}&after=${version}`); }

  /** Ends the pause before the next try. */
  hurry() { this.#hurry(); }

  #pause(seconds) {
    return new Promise((resolve) => {
      this.#hurry = resolve;
      setTimeout(resolve, 1000 * seconds);
    });
  }
}
