"""What is particular to diffusers: latents with noise, a time and a text; two kinds of attention; `.sample`."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inpaint_distill import adapters
from inpaint_distill.errors import ConfigError, PlanError
from inpaint_distill.host.adapted import derive
from inpaint_distill.host.attention_discovery import find_attention
from inpaint_distill.host.call import HostCall
from inpaint_distill.plan import plan

diffusers = pytest.importorskip("diffusers")

LATENTS, PIXELS = adapters.get("diffusers-inpainting-unet"), adapters.get("diffusers-pixels")


def hole(size):
    found = torch.zeros(2, 1, size, size)
    found[:, :, size // 4 : size // 2, size // 4 : size // 2] = 1
    return found


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def latent_call():
    """Return complete latents, a hole, and a training step's own call of the U-Net."""
    latents, mask = noise(2, 4, 32, 32), hole(32)
    # The latents of the emptied image differ around the hole too: the autoencoder looks further than a pixel.
    emptied = torch.where(F.max_pool2d(mask, 3, 1, 1) > 0, noise(2, 4, 32, 32, seed=1), latents)
    noisy = 0.6 * latents + 0.8 * noise(2, 4, 32, 32, seed=2)
    times, text = torch.tensor([10, 500]), noise(2, 7, 16, seed=3)
    call = HostCall((torch.cat([noisy, mask, emptied], 1), times), {"encoder_hidden_states": text})
    return latents, mask, call


def test_the_teacher_keeps_noise_time_and_text_and_sees_complete_latents_without_a_hole():
    host = LATENTS.build()
    latents, mask, call = latent_call()
    complete = derive(host, call, latents, mask, LATENTS).apply(call, latents)
    wanted = torch.cat([call.args[0][:, :4], torch.zeros_like(mask), latents], 1)
    torch.testing.assert_close(complete.args[0], wanted)
    assert complete.args[1] is call.args[1]
    assert complete.kwargs["encoder_hidden_states"] is call.kwargs["encoder_hidden_states"]
    with torch.no_grad():
        assert complete.run(host).sample.shape == latents.shape


def test_what_it_puts_out_is_noise_and_no_restored_image():
    assert not LATENTS.restores
    assert PIXELS.restores


def test_a_dry_run_gives_a_text_of_the_width_that_the_host_was_made_for():
    host, wide = LATENTS.build(), LATENTS.build(cross_attention_dim=24)
    for each, width in ((host, 16), (wide, 24)):
        call = LATENTS.convention(each).pack(noise(2, 4, 32, 32), hole(32))
        assert call.kwargs["encoder_hidden_states"].shape[2] == width
        with torch.no_grad():
            assert LATENTS.outputs(each, noise(2, 4, 32, 32), hole(32))[0].shape == (2, 4, 32, 32)


def test_a_host_of_the_xl_sizes_gets_its_further_conditions():
    more = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    host = LATENTS.build(**more, projection_class_embeddings_input_dim=60)
    with torch.no_grad():
        assert LATENTS.outputs(host, noise(2, 4, 32, 32), hole(32))[0].shape == (2, 4, 32, 32)


def test_only_self_attention_on_the_way_down_is_tapped():
    host = LATENTS.build()
    names = LATENTS.attention(host)
    assert names == [f"down_blocks.{level}.attentions.0.transformer_blocks.0.attn1" for level in (0, 1)]
    call = LATENTS.convention(host).pack(noise(2, 4, 32, 32), hole(32))
    found = {each.site.name: each for each in find_attention(host, lambda: call.run(host), (32, 32))}
    assert all(found[name].usable and found[name].site.queries == found[name].site.keys for name in names)
    text = [each for name, each in found.items() if name.endswith(".attn2")]
    assert text
    assert not any(each.usable for each in text)


def test_the_last_of_several_layers_is_tapped():
    host = LATENTS.build(layers_per_block=2, transformer_layers_per_block=2)
    assert LATENTS.attention(host)[0] == "down_blocks.0.attentions.1.transformer_blocks.1.attn1"
    assert LATENTS.stages(host) == [
        "down_blocks.0.attentions.1",
        "down_blocks.1.attentions.1",
        "down_blocks.2.resnets.1",
    ]


@pytest.mark.parametrize("network", list(PIXELS.networks))
def test_networks_on_pixels_are_tapped_before_each_level_goes_down(network):
    host = PIXELS.build(network)
    image, mask = noise(2, 3, 64, 64).clamp(-1, 1), hole(64)
    assert adapters.find(host) is not None
    assert adapters.find(host).name == "diffusers-pixels"
    with torch.no_grad():
        assert PIXELS.call(host, image, mask).shape == image.shape
    stages = plan(host, image, mask).stages
    assert [(stage.stride, stage.channels) for stage in stages] == [(1, 16), (2, 32), (4, 32)]


def test_channels_tell_an_inpainting_unet_from_one_that_paints_from_text():
    assert not LATENTS.matches(LATENTS.build(in_channels=4))
    assert not PIXELS.matches(PIXELS.build("AutoencoderKL", in_channels=3))


def test_a_class_of_that_name_from_elsewhere_is_a_stranger():
    host = LATENTS.build()
    lookalike = type("UNet2DConditionModel", (nn.Module,), {})()
    for name, child in host.named_children():
        lookalike.add_module(name, child)
    assert not LATENTS.matches(lookalike)
    with pytest.raises(PlanError, match="UNet2DConditionModel of diffusers"):
        LATENTS.convention(lookalike)


@pytest.mark.parametrize("adapter", [LATENTS, PIXELS])
def test_without_the_package_the_error_names_it_and_what_to_install(adapter, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ConfigError, match="no package diffusers") as caught:
        adapter.build()
    assert "inpaint-distill[hosts]" in caught.value.fix
