"""The three feed-forward networks against the published implementations."""

import pytest
import torch
from safetensors.torch import load_file

from ddsa_lab.model.feedforward import FEED_FORWARDS, SEFN, feed_forward
from ddsa_lab.model.published import published_to_ours


@pytest.mark.parametrize("name", FEED_FORWARDS)
def test_published_feed_forward(golden, name):
    tensors = load_file(golden / f"ffn_{name}.safetensors")
    parameters = {
        f"b.ffn.{n.removeprefix('param.')}": t for n, t in tensors.items() if n.startswith("param.")
    }
    made = feed_forward(name, 24, 2.66).eval()
    ours = published_to_ours(parameters)
    made.load_state_dict({n.removeprefix("b.ffn."): t for n, t in ours.items()})
    x = tensors["input"].contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(made(x), tensors["output"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("hidden", [8, 13])
@pytest.mark.parametrize("size", [(9, 7), (1, 5), (1, 1)])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_sefn_is_the_same_with_and_without_gradients(hidden, size, memory):
    """Without them its sums grow in place and its hidden channels are filled up to a multiple of 8."""
    made = SEFN(6, hidden).eval()
    x = torch.randn(2, 6, *size, generator=torch.Generator().manual_seed(0)).to(memory_format=memory)
    recorded, given = made(x), x.clone()
    with torch.no_grad():
        torch.testing.assert_close(made(x), recorded.detach(), atol=1e-6, rtol=0)
    assert torch.equal(x, given)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        low = made(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), recorded.detach(), atol=0.02, rtol=0)
