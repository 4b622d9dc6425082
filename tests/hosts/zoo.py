"""The table of toy hosts."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from hosts import attentive, conventions, outputs, states, transformers
from hosts.base import Plain

__all__ = ["ZOO", "ZOO_NAMES", "ToyHost"]

_ENCODER = ("enc0", "enc1", "enc2")


@dataclass(frozen=True)
class ToyHost:
    """One host and how its author calls it.

    Attributes:
        trait: What is special about it.
        make: Build it.
        convention: Key of :data:`hosts.conventions.CALLS`.
        stages: Labels of its encoder's stages as a plan should name them.
        index: Where the restored image is in the output.
        attention: Labels of the attention layers that a plan should tap.
    """

    trait: str
    make: Callable[[], nn.Module]
    convention: str = "cat"
    stages: tuple[str, ...] = _ENCODER
    index: tuple = ()
    attention: tuple[str, ...] = ()

    size = 32
    """Side of the images that it is tried on."""
    channels = 3
    """Their channels."""

    @property
    def images(self):
        """Say what :func:`hosts.loop.batch` makes for it."""
        return {"size": self.size, "channels": self.channels}

    adapter = None
    """What ``plan()`` has to be told of it, where it is not found out."""

    @property
    def given(self):
        """What ``attach()`` has to be told of it."""
        return {"adapter": self.adapter}

    def build(self, seed=0):
        """Build with fixed weights, whatever the random state; the state is as before afterwards."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make()

    def call(self, host, image, mask):
        """Run as its author does: ``image`` in [-1, 1], ``mask`` 1 in the hole."""
        return conventions.CALLS[self.convention](host, image, mask)

    def select(self, output):
        """Take the restored image from the output."""
        for key in self.index:
            output = getattr(output, key) if isinstance(key, str) and not isinstance(output, dict) else output[key]
        return output


_PAIRS = tuple(f"{name}[0]" for name in _ENCODER)

ZOO = {
    # how image and mask are passed
    "concatenated": ToyHost("mask 1 = hole, concatenated", Plain),
    "concatenated_known": ToyHost("mask 1 = known, concatenated", Plain, "cat_known"),
    "mask_first": ToyHost("mask before the image", Plain, "mask_first"),
    "separate": ToyHost("mask 1 = hole as an argument", Plain, "separate"),
    "separate_known": ToyHost("mask 1 = known as an argument", Plain, "separate_known"),
    "rgb_known": ToyHost("known mask repeated to 3 channels", partial(Plain, 6), "rgb_known"),
    "ones_plane": ToyHost("with a plane of ones", partial(Plain, 5), "ones"),
    "ones_and_mask": ToyHost("a plane of ones, and the mask a second time", partial(Plain, 6), "ones_and_mask"),
    "centred_mask": ToyHost("known - 0.5 before the image", Plain, "centred_mask"),
    "masks_itself": ToyHost("takes the whole image", conventions.MasksItself, "whole"),
    "unit_range": ToyHost("image in [0, 1]", Plain, "unit"),
    "imagenet": ToyHost("image ImageNet-normalised", Plain, "imagenet"),
    "bytes": ToyHost("image and mask in 0..255", Plain, "bytes"),
    "bgr": ToyHost("channels reversed", Plain, "bgr"),
    "white_holes": ToyHost("holes painted white, no mask", partial(Plain, 3), "white"),
    "mean_holes": ToyHost("holes painted with the mean of ImageNet, in [0, 1]", Plain, "mean"),
    "mask_by_method": ToyHost(
        "a network that is told the mask by a method",
        conventions.MaskSetter,
        "separate",
        tuple(f"net.{name}" for name in _ENCODER),
    ),
    "bool_mask": ToyHost("mask as booleans", Plain, "bool_mask"),
    "half_mask": ToyHost("mask at half the resolution", conventions.Pooled, "half_mask"),
    "keywords": ToyHost("everything by keyword", conventions.Keywords, "keywords"),
    "nested": ToyHost("one nested container", conventions.Nested, "nested"),
    "written": ToyHost(
        "writes what it puts out into what it takes", conventions.Written, "written", index=("restored",)
    ),
    "overwrites": ToyHost("normalises its argument in place", conventions.Overwrites, "separate"),
    # what comes out
    "image_and_none": ToyHost("returns (image, None)", outputs.ImageAndNone, index=(0,)),
    "dict_output": ToyHost("returns a dict", outputs.DictOutput, index=("out",)),
    "dataclass_output": ToyHost("returns a dataclass", outputs.DataclassOutput, index=("sample",)),
    "returns_feature": ToyHost("returns (image, bottleneck)", outputs.ReturnsFeature, index=(0,)),
    "fine_first": ToyHost("returns a list of scales, fine first", partial(outputs.Scales, False), index=(0,)),
    "coarse_first": ToyHost("returns a list of scales, coarse first", partial(outputs.Scales, True), index=(1,)),
    "pictured": ToyHost("returns a picture made by numpy", outputs.Pictured, index=(0,)),
    "two_stage": ToyHost(
        "coarse and fine network",
        outputs.CoarseFine,
        "separate",
        tuple(f"fine.{name}" for name in _ENCODER),
        (1,),
    ),
    "interrupted": ToyHost("a network of its own runs between two stages", outputs.Interrupted),
    "training_only": ToyHost(
        "a second network that is run in training mode alone",
        outputs.TrainingOnly,
        "separate",
        tuple(f"base.{name}" for name in _ENCODER),
        (0,),
    ),
    "three_encoders": ToyHost(
        "coarse network, and a fine one with two encoders",
        outputs.ThreeEncoders,
        "separate",
        tuple(f"down.{name}" for name in _ENCODER),
        (1,),
    ),
    "partial_conv": ToyHost("stages put out (feature, mask)", outputs.PartialConv, "rgb_known", _PAIRS, (0,)),
    "local_global": ToyHost("stages put out (feature, 0)", outputs.LocalGlobal, stages=_PAIRS),
    "dict_stages": ToyHost(
        "stages put out a dict",
        outputs.NamedSkips,
        stages=tuple(f"{name}['feature']" for name in ("first", "second", "third")),
    ),
    "skip_tuples": ToyHost(
        "blocks put out (next resolution, skips)",
        outputs.SkipTuples,
        stages=("down.0[1][0]", "down.1[1][0]", "down.1[0]"),
    ),
    "tokens": ToyHost("features are tokens (B, N, C)", outputs.Tokens, stages=("mix", "merge")),
    "nhwc": ToyHost("features are (B, H, W, C)", outputs.NHWC, stages=("layers.0", "layers.1")),
    # what they do to themselves
    "in_place": ToyHost("overwrites its features", states.InPlace),
    "batch_norm": ToyHost("moves batch statistics", states.BatchNorm),
    "shared_activation": ToyHost(
        "one activation for all stages", states.SharedActivation, stages=("act", "act (call 1)", "act (call 2)")
    ),
    "gated": ToyHost("one activation inside all layers", states.Gated),
    "default_activation": ToyHost(
        "one activation for all hosts, born in eval mode",
        states.DefaultActivation,
        stages=("act", "act (call 1)", "act (call 2)"),
    ),
    "aliases": ToyHost("stages under three names, a shared weight", states.Aliases),
    "sliced": ToyHost("slices its sequence of layers", states.Sliced, stages=("net.0", "net.1", "net.2")),
    "pooled_norm": ToyHost("batch-normalises single pixels", states.PooledNorm),
    "mask_updater": ToyHost(
        "a kernel that is a plain tensor", partial(outputs.PartialConv, states.MaskUpdater), "rgb_known", _PAIRS, (0,)
    ),
    "rebuilt": ToyHost("copies run its constructor again", states.Rebuilt),
    "hook_spectral_norm": ToyHost("torch's spectral norm", states.HookSpectralNorm),
    "data_spectral_norm": ToyHost("power iteration through .data", states.DataSpectralNorm),
    "cached_tensor": ToyHost("keeps a non-leaf tensor", states.CachedTensor),
    "private_cache": ToyHost("keeps tensors in private attributes and lists", states.PrivateCache),
    "silent_modes": ToyHost("train() returns None", states.SilentModes),
    "noisy": ToyHost("random in eval mode", states.Noisy),
    "recurrent": ToyHost(
        "runs its encoder three times",
        states.Recurrent,
        stages=("down.enc0 (call 2)", "down.enc1 (call 2)", "down.enc2 (call 2)"),
    ),
    "six_runs": ToyHost(
        "runs its encoder six times",
        partial(states.Recurrent, 6),
        stages=("down.enc0 (call 5)", "down.enc1 (call 5)", "down.enc2 (call 5)"),
    ),
    "quantised": ToyHost("quantises its bottleneck, straight through", states.Quantised, index=("sample",)),
    # how they attend
    "root_attention": ToyHost("rows in a method of the root", attentive.RootMethod, attention=("",)),
    "softmax_module": ToyHost("rows put out by a submodule", attentive.SoftmaxModule, attention=("",)),
    "returned_rows": ToyHost("rows returned beside the feature", attentive.ReturnedRows, attention=("attention",)),
    "fused_attention": ToyHost("fused attention to fewer keys", attentive.Fused, attention=("",)),
    "multi_head": ToyHost("nn.MultiheadAttention", attentive.MultiHead, attention=("attention",)),
    "keys_put_out": ToyHost("rows put out as a map, a channel for each key", attentive.KeysPutOut, attention=("rows",)),
    "linear_attention": ToyHost("softmax, but no rows", attentive.Linear),
    "shifted_windows": ToyHost(
        "windows of 2 x 2, every other time shifted",
        partial(transformers.Windowed, 2),
        stages=("layers.0", "layers.1"),
        attention=("layers.0.2.attn", "layers.1.2.attn"),
    ),
    "padded_windows": ToyHost(
        "windows of 7 x 7 over a padded map; where they are shifted as well, their places are not known",
        partial(transformers.Windowed, 7),
        stages=("layers.0", "layers.1"),
        attention=("layers.0.1.attn", "layers.1.1.attn"),
    ),
    "class_token": ToyHost(
        "a class token before those of the image",
        transformers.ClassToken,
        stages=("embed", "merge"),
        attention=("mix.attn",),
    ),
    "words": ToyHost(
        "attends to words, and among words and image",
        transformers.Worded,
        "words",
        stages=("look", "merge"),
        attention=("mix.attn",),
    ),
}
ZOO_NAMES = tuple(ZOO)
