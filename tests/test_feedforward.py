"""The three feed-forward networks against the published implementations."""

import pytest
import torch
from safetensors.torch import load_file

from ddsa_lab.model.feedforward import FEED_FORWARDS, feed_forward
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
