/* A request as commands that run: what the page asks, for a shell and for Python. */

const quoteShell = (text) => (/^[\w./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
const escapeHereDocument = (text) => text.replace(/[\\$`]/g, "\\$&");

/** question: { origin, model, prompt, file: { name, type }, hasKey }. */
export const formatCurl = ({ origin, model, prompt, file, hasKey }) => {
  const json = (value) => escapeHereDocument(JSON.stringify(value));
  const text = prompt ? `,\n  {"type": "text", "text": ${json(prompt)}}` : "";
  const key = hasKey ? ` \\\n  -H "Authorization: Bearer $LORGNETTE_API_KEY"` : "";
  return `curl -N ${origin}/v1/chat/completions \\
  -H "Content-Type: application/json"${key} -d @- <<END
{"model": ${json(model)}, "stream": true,
 "messages": [{"role": "user", "content": [
  {"type": "image_url", "image_url": {"url":
   "data:${file.type};base64,$(base64 < ${quoteShell(file.name)} | tr -d '\\n')"}}${text}]}]}
END`;
};

/** JSON's strings are Python's. */
export const formatPython = ({ origin, model, prompt, file, hasKey }) => {
  const json = JSON.stringify;
  const text = prompt ? `\n        {"type": "text", "text": ${json(prompt)}},` : "";
  return `import base64
${hasKey ? "import os\n" : ""}from openai import OpenAI

client = OpenAI(
    base_url=${json(`${origin}/v1`)},
    api_key=${hasKey ? 'os.environ["LORGNETTE_API_KEY"]' : '"none"'},
)
with open(${json(file.name)}, "rb") as file:
    image = base64.b64encode(file.read()).decode()
url = f"data:${file.type};base64,{image}"
answer = client.chat.completions.create(
    model=${json(model)},
    messages=[{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": url}},${text}
    ]}],
)
print(answer.choices[0].message.content)`;
};
