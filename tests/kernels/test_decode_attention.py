"""Each new token attends to its own row's keys; the kernel equals its reference."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from lorgnette.kernels.decode_attention import decode_attention
from lorgnette.kernels.tiles import find_tiles
from lorgnette.types import Capability

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def draw_inputs(lengths: list[int], L: int, H: int, K: int, D: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    B = len(lengths)
    wide = torch.randn(B, (H + 2 * K) * D + 8).to(dtype)  # queries are columns of the projection's output
    return wide, torch.randn(B, L, 2 * K, D).to(dtype), torch.tensor(lengths, dtype=torch.int32)


@pytest.mark.parametrize(("H", "K", "D"), [(4, 2, 16), (6, 1, 32), (3, 3, 8)])
def test_each_row_attends_to_its_own_keys(H: int, K: int, D: int) -> None:
    wide, cache, lengths = draw_inputs([1, 7, 20, 20], 20, H, K, D, torch.float32)
    out = torch.zeros(4, H * D + 3)
    decode_attention(wide[:, : H * D], cache, lengths, out[:, : H * D])
    for row, length in enumerate(lengths.tolist()):
        k, v = cache[row, :length].transpose(0, 1).split(K)
        q = wide[row, : H * D].view(H, 1, D)
        expected = scaled_dot_product_attention(q, k, v, enable_gqa=True).flatten()
        torch.testing.assert_close(out[row, : H * D], expected, atol=1e-6, rtol=0)
    assert (out[:, H * D :] == 0).all()
    decode_attention(wide[:, : H * D], cache, lengths.clamp(max=19), shorter := torch.zeros(4, H * D))
    assert torch.equal(shorter[1], out[1, : H * D])
    assert not torch.allclose(shorter[2], out[2, : H * D], atol=1e-3)  # negative control


@CUDA
@pytest.mark.parametrize(("H", "K", "D"), [(4, 2, 16), (12, 2, 128), (3, 3, 64)])
@pytest.mark.parametrize("L", [40, 256, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("capability", [(7, 5), (9, 0)])
def test_the_kernel_equals_its_reference(
    H: int, K: int, D: int, L: int, dtype: torch.dtype, capability: Capability, monkeypatch: pytest.MonkeyPatch
) -> None:
    """capability: of the card whose tiles are used. torch still tells the true one: Triton would keep the other, and
    compile for it as long as the process runs."""
    monkeypatch.setattr("lorgnette.kernels.decode_attention.select_tiles", lambda _: find_tiles(capability))
    wide, cache, lengths = draw_inputs([1, 17, L // 2, L - 1, L], L, H, K, D, dtype)
    decode_attention(wide[:, : H * D], cache, lengths, expected := torch.zeros(5, H * D, dtype=dtype))
    out = torch.zeros(5, H * D + 8, dtype=dtype, device="cuda")
    decode_attention(wide.cuda()[:, : H * D], cache.cuda(), lengths.cuda(), out[:, : H * D])
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 1e-2, "rtol": 2**-7}
    torch.testing.assert_close(out[:, : H * D].cpu(), expected, **tolerance)
