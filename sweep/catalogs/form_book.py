"""Looks the forms of a layer variant up, deriving what was not traced from what was."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence

from sweep.catalogs.layer_forms import Form, KernelChange, LayerForms, LayerVariant

# Terms that stand for rows of an MLP: a working set that holds one is taken while the MLP is live.
_MLP_TOKEN_FEATURES = ("T*f", "T*k*fe", "T*fs", "T*E*fe")


def _add(first: Form, second: Form, scale: float = 1.0) -> dict[str, float]:
    total = dict(first)
    for name, coefficient in second.items():
        total[name] = total.get(name, 0.0) + scale * coefficient
    return {name: coefficient for name, coefficient in total.items() if coefficient != 0.0}


def _holds_mlp(form: Form) -> bool:
    """Whether a working set is taken while the MLP, and so all of the layer, is live."""
    return max(form.get(name, 0.0) for name in _MLP_TOKEN_FEATURES) > 0.0


def _released(form: Form, keep: Form) -> dict[str, float]:
    """A working set that lets go of no more of any token feature than the layer kept."""
    return {
        name: max(coefficient, -keep.get(name, 0.0)) if name.startswith("T") else coefficient
        for name, coefficient in form.items()
    }


# Variants to try, nearest first, when a family was not traced in just the one asked for.
_RELAXATIONS: tuple[dict[str, object], ...] = (
    {"dropout": False},
    {"padding_mask": False},
    {"kbit_prep": False},
    {"kbit_prep": False, "dropout": False},
    {"autocast": True, "kbit_prep": False, "dropout": False},
    {"method": "lora", "weight_dtype": "bf16", "kbit_prep": False, "dropout": False},
    {
        "method": "lora", "weight_dtype": "bf16", "autocast": True, "kbit_prep": False,
        "dropout": False,
    },
    {
        "method": "lora", "weight_dtype": "bf16", "autocast": True, "kbit_prep": False,
        "dropout": False, "lora_target": "all-linear", "adapter_dtype": "fp32",
    },
    {
        "method": "lora", "weight_dtype": "bf16", "autocast": True, "kbit_prep": False,
        "dropout": False, "lora_target": "attention", "adapter_dtype": "fp32",
    },
    {
        "method": "full", "weight_dtype": "bf16", "autocast": False, "kbit_prep": False,
        "dropout": False, "lora_target": "none", "adapter_dtype": "none",
    },
)  # fmt: skip


def _relaxed(variant: LayerVariant) -> list[LayerVariant]:
    nearby = [variant._replace(**change) for change in _RELAXATIONS]  # type: ignore[arg-type]
    unmasked = [near._replace(padding_mask=False) for near in nearby]
    other = "eager" if variant.attention == "flash" else "flash"
    return [variant, *nearby, *unmasked, *(near._replace(attention=other) for near in unmasked)]


# How the reference layer's MLP terms read in a layer of another shape. A plain MLP has two matrices
# where the gated reference has three; routed experts see k rows a token and hold E matrices each.
_TRANSLATIONS: Mapping[str, Mapping[str, tuple[tuple[str, float], ...]]] = {
    "gated": {},
    "plain": {"h*f": (("h*f", 2.0 / 3.0),), "r*f": (("r*f", 2.0 / 3.0),)},
    "experts": {
        "T*f": (("T*k*fe", 1.0), ("T*fs", 1.0)),
        "h*f": (("E*fe*h", 1.0), ("h*fs", 1.0)),
        "r*f": (),
    },
}


# LoRA targets that leave the MLP frozen.
_FROZEN_MLP = ("attention-qv", "attention")

# Kept per layer under torchtitan's selective-op policy, bytes per token (docs/physics.md).
_SELECTIVE: Form = {"T*h": 4.0, "T*hq": 4.0, "T*hkv": 2.0, "T*f": 2.0, "T*nq": 4.0}


def _translate(form: Form, mlp: str) -> dict[str, float]:
    rules = _TRANSLATIONS[mlp]
    out: dict[str, float] = {}
    for name, coefficient in form.items():
        for target, scale in rules.get(name, ((name, 1.0),)):
            out[target] = out.get(target, 0.0) + coefficient * scale
    return out


class FormBook:
    """Looks a variant up, deriving what was not traced from what was; remembers its answers.

    `mlp_of` says for each layer family whether its MLP is "gated", "plain" or "experts"; `like`
    names the family whose traced changes stand in for its own ("" for the reference itself);
    `fp32_norm_output` are the families whose norms hand fp32 on under autocast.
    """

    def __init__(
        self,
        traced: Mapping[LayerVariant, LayerForms],
        mlp_of: Mapping[str, str],
        like: Mapping[str, str],
        fp32_norm_output: Collection[str] = (),
        changes: Sequence[KernelChange] = (),
    ):
        self._changes = tuple(changes)
        self._traced = dict(traced)
        self._mlp_of = dict(mlp_of)
        self._like = dict(like)
        self._fp32_norm_output = frozenset(fp32_norm_output)
        self._families = {variant.family for variant in traced}
        self.resolve = functools.lru_cache(maxsize=None)(self._resolve)

    @property
    def families(self) -> frozenset[str]:
        """Layer families with at least one traced form."""
        return frozenset(self._families)

    def _resolve(self, variant: LayerVariant) -> LayerForms | None:
        """The forms of a variant, or None when the family is unknown."""
        if variant.kernels:
            return self._change_kernels(variant)
        if variant in self._traced:
            exact = self._traced[variant]
            if exact.backward:
                return exact
        if variant.family not in self._families:
            return None
        if variant.checkpointing == "none":
            return self._derive_without_checkpointing(variant)
        if variant.checkpointing == "selective":
            return self._derive_selective(variant)
        return self._derive_checkpointed(variant)

    def _derive_selective(self, variant: LayerVariant) -> LayerForms | None:
        """Selective checkpointing keeps every second matmul's output and attention's, no more.

        What is kept follows torchtitan's selective-op policy (docs/physics.md); backward recomputes
        the rest of the layer, so its working set is that of full checkpointing less what was kept.
        """
        full = self.resolve(variant._replace(checkpointing="full"))
        if full is None:
            return None
        nothing = self.resolve(variant._replace(checkpointing="none"))
        plain = self._mlp_of[variant.family] == "plain"
        keep = {}
        for name, coefficient in _translate(_SELECTIVE, self._mlp_of[variant.family]).items():
            # Never more than without checkpointing; plain families state heads in terms of h.
            most = nothing.keep.get(name, 0.0 if plain else coefficient) if nothing else coefficient
            if min(coefficient, most) > 0.0:
                keep[name] = min(coefficient, most)
        extra = _add(keep, {"T*h": 2.0}, -1.0)
        backward = tuple(
            _add(form, extra, -1.0) if _holds_mlp(form) else form for form in full.backward
        )
        return LayerForms(
            _add(full.keep, extra), full.forward, backward, "derived: selective-op policy"
        )

    def _derive_without_checkpointing(self, variant: LayerVariant) -> LayerForms | None:
        """Keep of the nearest traced variant of the family, plus what the change adds to its like.

        What a change of method adds (copies of a target's input, adapter outputs) hangs on the
        linears of a layer, which the like layer has too; the working set of backward without
        checkpointing is that of the MLP's last matmuls and carries over.
        """
        like = self._like[variant.family]
        if not like:
            return self._nearest_traced(variant)
        wanted = self.resolve(variant._replace(family=like))
        if self._has_fp32_stream(variant) and variant not in self._traced and wanted is not None:
            return self._widen(variant, wanted)
        for near in _relaxed(variant):
            known = self._traced.get(near)
            base = self.resolve(near._replace(family=like))
            if known is None or base is None or wanted is None:
                continue
            delta = self._translated(_add(wanted.keep, base.keep, -1.0), like, variant.family)
            keep = _add(known.keep, delta)
            backward = tuple(
                _released(self._translated(form, like, variant.family), keep)
                for form in wanted.backward
            )
            return LayerForms(
                keep=keep,
                forward=tuple(_add(form, delta) for form in known.forward),
                backward=known.backward or backward,
                basis=known.basis if near == variant else f"derived by {like}'s change",
            )
        return None

    def _has_fp32_stream(self, variant: LayerVariant) -> bool:
        """Whether hidden states run through the layer in fp32 although weights compute in bf16.

        A 4-bit linear returns its output in its input's type. Where autocast makes a norm hand fp32
        on, so do the linears that read it, the activation and the residual stream.
        """
        return (
            variant.weight_dtype == "nf4"
            and variant.autocast
            and variant.family in self._fp32_norm_output
        )

    def _widen(self, variant: LayerVariant, wanted: LayerForms) -> LayerForms | None:
        """LoRA's keep over 16-bit weights, with what the fp32 stream makes wider.

        The activation saves its input in 4 bytes, not 2; norms save 4 either way, and adapters copy
        fp32 inputs to bf16 either way. Attention's bf16 output alone needs no copy: its adapter and
        the flash kernel save the same tensor. BLOOM's traced pair shows the same change.
        """
        lora = self.resolve(variant._replace(method="lora", weight_dtype="bf16", kbit_prep=False))
        if lora is None:
            return None
        delta = {"T*f": 2.0}
        if variant.attention == "flash" and variant.lora_target in ("all-linear", "attention"):
            delta["T*hq"] = -2.0
        keep = _add(lora.keep, delta)
        like = self._like[variant.family]
        return LayerForms(
            keep=keep,
            forward=tuple(_add(form, delta) for form in lora.forward),
            backward=tuple(
                _released(self._translated(form, like, variant.family), keep)
                for form in wanted.backward
            ),
            basis="derived: LoRA with an fp32 stream",
        )

    def _nearest_traced(self, variant: LayerVariant) -> LayerForms | None:
        for near in _relaxed(variant):
            if near in self._traced:
                found = self._traced[near]
                basis = found.basis if near == variant else "derived from the nearest variant"
                return LayerForms(found.keep, found.forward, found.backward, basis, found.cached)
        return None

    def _derive_checkpointed(self, variant: LayerVariant) -> LayerForms | None:
        """Recomputing a layer rebuilds what it would have kept: the like's working set, shifted.

        The shift is the difference of the two families' kept bytes without checkpointing; it is
        applied to the sets of the moment when all of the layer is live again (they hold MLP terms).
        """
        like = self._like[variant.family]
        if not like and variant.lora_target in _FROZEN_MLP:
            return self._recompute(variant)
        if not like:
            return self._nearest_traced(variant)
        theirs = self.resolve(variant._replace(family=like))
        their_keep = self.resolve(variant._replace(family=like, checkpointing="none"))
        mine = self.resolve(variant._replace(checkpointing="none"))
        if theirs is None or mine is None or their_keep is None:
            return None
        family = variant.family
        delta = _add(mine.keep, self._translated(their_keep.keep, like, family), -1.0)
        backward = []
        for form in theirs.backward:
            translated = self._translated(form, like, family)
            backward.append(_add(translated, delta) if _holds_mlp(form) else translated)
        own = self._traced.get(variant)
        keep = own.keep if own else self._translated(theirs.keep, like, family)
        their_stream = self._has_fp32_stream(variant._replace(family=like))
        if own is None and self._has_fp32_stream(variant) and not their_stream:
            keep = _add(keep, {"T*h": 2.0})  # the layer's input is kept, in 4 bytes instead of 2
        forward = tuple(self._translated(form, like, family) for form in theirs.forward)
        return LayerForms(keep, forward, tuple(backward), f"derived from {like}'s working set")

    def _change_kernels(self, variant: LayerVariant) -> LayerForms | None:
        """The eager layer with what its kernels keep more or less, wherever all of it is live."""
        eager = self.resolve(variant._replace(kernels=""))
        if eager is None:
            return None
        mlp = self._mlp_of[variant.family]
        changes = [change for change in self._changes if change.fits(variant, mlp)]
        if not changes:
            return eager
        whole = self.resolve(variant._replace(kernels="", checkpointing="none"))
        if whole is None:
            return None
        keep = whole.keep
        for change in changes:
            if change.checkpointing == "":
                keep = change.keep if change.replaces else _add(keep, change.keep)
        delta = _add(keep, whole.keep, -1.0)
        backward = eager.backward
        if variant.checkpointing != "none":
            keep = eager.keep
            backward = tuple(
                _add(form, delta) if _holds_mlp(form) else form for form in eager.backward
            )
        for change in changes:
            if change.checkpointing and change.checkpointing == variant.checkpointing:
                keep = change.keep if change.replaces else _add(keep, change.keep)
        basis = f"{eager.basis}, with the changes of {variant.kernels}"
        return LayerForms(keep, eager.forward, backward, basis)

    def _recompute(self, variant: LayerVariant) -> LayerForms | None:
        """Recomputing a layer with a frozen MLP: all it would keep, and its backward on top.

        The traced pair with adapters on q and v is just that: what backward works with while the MLP
        runs comes on top of the whole layer. Layers keep their input, in the stream's dtype.
        """
        mine = self.resolve(variant._replace(checkpointing="none"))
        if mine is None:
            return None
        backward = tuple(_add(mine.keep, form) for form in mine.backward if _holds_mlp(form))
        fp32_stream = variant.kbit_prep and variant.autocast
        keep = {"T*h": 4.0 if fp32_stream else 2.0}
        return LayerForms(keep, mine.forward, backward + mine.forward, "derived: recomputed layer")

    def _translated(self, form: Form, source: str, target: str) -> dict[str, float]:
        """A form of one family in the terms of another: only gated forms need translating."""
        mlp = self._mlp_of[target] if self._mlp_of[source] == "gated" else "gated"
        return _translate(form, mlp)
