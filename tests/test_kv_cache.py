# SPDX-License-Identifier: Apache-2.0
"""Keys and values of a streaming model in INT8."""

from __future__ import annotations

import copy
from dataclasses import replace

import family
import pytest
import torch
from family import DIM, Holder, far, grid

import vggtquant as vq

LINEARS = vq.CONFIGS["INT8_Per_Channel_Symmetric_A8"]
FAST = replace(vq.CONFIGS["INT8_Fast"], name="fast", skip_first_last=False)
TOKENS = 13


def streaming() -> Holder:
    return Holder(family.CachedBlock(family.Cached(family.RotaryPositionEmbedding2D())))


def test_a_quarter_of_the_bytes() -> None:
    """Near the outputs of a float cache, and the state that a call was given stays as it is."""
    torch.manual_seed(0)
    model = streaming()
    want_model = copy.deepcopy(model)
    assert not vq.quantize_model(want_model, FAST)[1].notes
    report = vq.quantize_model(model, replace(FAST, name="kv", kv_cache="int8"))[1]
    assert not report.notes
    assert "int8 cache" in {row.name: row.scheme for row in report.modules}["block.attn"]
    want_past, past, states = None, None, []
    with torch.inference_mode():
        for _ in range(3):
            x, pos = torch.randn(2, TOKENS, DIM), grid(2, TOKENS)
            want, want_past = want_model.block(x, pos, past_key_values=want_past, use_cache=True)
            got, past = model.block(x, pos, past_key_values=past, use_cache=True)
            states.append((x, pos, got, past))
            assert 0 < far(got - x, want - x) < 0.01 or len(states) == 1
        for a, b in zip(want_past, past, strict=True):
            assert a.shape == b.shape and far(b.decoded(), a) < 0.01
            rows, head = a.numel() // a.shape[-1], a.shape[-1]
            assert b.nbytes < rows * (head + 4) * 1.1  # what is added pads each part to a panel
        x, pos, got, _ = states[1]  # a call again from an earlier state gives the same
        again, _ = model.block(x, pos, past_key_values=states[0][3], use_cache=True)
        assert torch.equal(again, got)
        floats = tuple(c.decoded() for c in states[0][3])  # from a model that kept floats
        assert far(model.block(x, pos, past_key_values=floats, use_cache=True)[0], got) < 1e-5
        assert torch.equal(model.block(x, pos), model.block(x, pos, use_cache=False))


def test_an_int8_cache_where_nothing_is_kept() -> None:
    model = Holder(family.BlockRope(family.FlashAttentionRope(family.RoPE2D())))
    notes = vq.quantize_model(model, replace(FAST, name="kv", kv_cache="int8"))[1].notes
    assert any("kv_cache='int8' had nothing to do" in note for note in notes)
    with pytest.raises(vq.UserError, match="kv_cache is 'int8', but attention is 'float'"):
        replace(LINEARS, kv_cache="int8")
