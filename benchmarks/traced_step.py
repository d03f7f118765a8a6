"""One training step of Transformers and PEFT on tensors without storage, its memory followed.

For trace_memory.py, which starts Python with a stand-in for CUDA: not to be run alone.

FakeTensorMode gives every tensor a shape, a dtype and the device "cuda", and no memory. A dispatch
mode sees every operator's output, so every storage at its birth; a weak reference tells its death.
Not seen: the CUDA context, workspaces inside kernels (cuBLAS, flash backward's accumulators),
communication buffers, fragmentation.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import accelerate
import accelerate.utils
import peft
import peft.utils.transformers_weight_conversion as expert_targets
import torch
import torch.optim.adam as adam_loop
import transformers
import transformers.masking_utils as masking
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = "cuda"
BLOCK_BYTES = 512  # the caching allocator hands out whole blocks of these
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
NF4_BLOCK, NF4_OUTER_BLOCK = 64, 256  # weights per constant, constants per constant of constants

# Module names of the attention targets, where a family calls them otherwise than llama.
TARGETS: Mapping[str, Mapping[str, list[str]]] = {
    "all": {"gpt2": ["c_attn", "c_proj", "c_fc"]},  # others: PEFT's "all-linear"
    "qkvo": {
        "": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "bloom": ["query_key_value", "self_attention.dense"],
        "falcon": ["query_key_value", "self_attention.dense"],
        "gpt2": ["c_attn", "attn.c_proj"],
        "gpt_neox": ["query_key_value", "attention.dense"],
        "latent": ["q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"],
        "opt": ["q_proj", "k_proj", "v_proj", "out_proj"],
        "phi3": ["qkv_proj", "o_proj"],
    },
    "qv": {
        "": ["q_proj", "v_proj"],
        "bloom": ["query_key_value"],
        "falcon": ["query_key_value"],
        "gpt2": ["c_attn"],
        "gpt_neox": ["query_key_value"],
        "phi3": ["qkv_proj"],
    },
}


class Ledger(TorchDispatchMode):
    """The live storages of the device: bytes by purpose, and the peak of each phase of the step."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = "start"
        self.purpose = "kept"  # of storages born from now on
        self.total = 0
        self.by_purpose: Counter[str] = Counter()
        self.peaks: dict[str, dict[str, Any]] = {}
        self.attention_kernels: Counter[str] = Counter()
        self.operator = ""
        self._live: dict[int, tuple[int, str, weakref.ref[Any]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operator = func._schema.name.removeprefix("aten::")
        if "attention" in self.operator:
            self.attention_kernels[self.operator] += 1
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.enter(leaf)
        self.note_peak()
        return out

    def size_of(self, tensor: Tensor) -> int:
        """Bytes a tensor's storage takes of the allocator."""
        return -(-tensor.untyped_storage().nbytes() // BLOCK_BYTES) * BLOCK_BYTES

    def enter(self, tensor: Tensor | None, purpose: str | None = None) -> None:
        """Count a tensor's storage from now to its death; a purpose given corrects the one it has."""
        if tensor is None or tensor.device.type != DEVICE:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        known = self._live.get(key)
        if known is None:
            size = self.size_of(tensor)
            if size:
                born = purpose or self.purpose
                death = weakref.ref(storage, lambda _, key=key: self._leave(key))
                self._live[key] = (size, born, death)
                self._count(size, born)
        elif purpose and known[1] != purpose:
            self._count(-known[0], known[1])
            self._count(known[0], purpose)
            self._live[key] = (known[0], purpose, known[2])

    def _leave(self, key: int) -> None:
        size, purpose, _ = self._live.pop(key)
        self._count(-size, purpose)

    def _count(self, size: int, purpose: str) -> None:
        self.total += size
        self.by_purpose[purpose] += size

    def note_peak(self) -> None:
        """Remember this moment when none of its phase held more."""
        if self.total > self.peaks.get(self.phase, {"bytes": -1})["bytes"]:
            held = {name: size for name, size in self.by_purpose.items() if size}
            self.peaks[self.phase] = {"bytes": self.total, "operator": self.operator, **held}

    def begin(self, phase: str) -> None:
        self.phase = phase


# ---------------------------------------------------------------- what fake tensors cannot do


def take_the_path_of_real_tensors(padding_mask: bool) -> None:
    """Undo what libraries do otherwise, or cannot do, with tensors that hold no values."""
    warnings.filterwarnings("ignore")
    # Transformers takes a fake tensor for torch.compile at work and then builds every mask; a real
    # step skips a causal one, and makes it only where padding is given.
    masking.is_tracing = lambda *_: padding_mask
    masking.find_packed_sequence_indices = lambda *_: None
    # The loop and foreach optimizers read their step counter's value.
    adam_loop._get_value = lambda _: 1.0
    # Module.to() may not change the data of a fake parameter, but may put another in its place.
    nn.Module._apply = _replace_parameters


def _replace_parameters(module: nn.Module, function: Any, recurse: bool = True) -> nn.Module:
    """nn.Module._apply that makes new parameters, and only where something changes: ties hold."""
    for child in module.children() if recurse else ():
        _replace_parameters(child, function)
    for name, old in list(module._parameters.items()):
        if old is not None:
            new = function(old.detach())
            if (new.dtype, new.device) != (old.dtype, old.device):
                module._parameters[name] = nn.Parameter(new, old.requires_grad)
    for name, buffer in list(module._buffers.items()):
        if buffer is not None:
            module._buffers[name] = function(buffer)
    return module


# ---------------------------------------------------------------- 4-bit linears


class _FourBitProduct(torch.autograd.Function):
    """x W^T with W packed: a 16-bit copy lives for one product, and x is not saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, shape: tuple[int, int], bias: Any) -> Tensor:
        ctx.packed, ctx.shape = packed, shape
        return nn.functional.linear(x, packed.new_empty(shape, dtype=x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        copy = ctx.packed.new_empty(ctx.shape, dtype=gradient.dtype)
        return gradient @ copy, None, None, None


def quantize_linears(model: nn.Module, double: bool) -> None:
    """Put a 4-bit linear of bitsandbytes, as far as memory knows one, in place of all but the head."""
    import bitsandbytes

    class FourBitLinear(bitsandbytes.nn.Linear4bit):  # type: ignore[misc]
        """A Linear4bit to PEFT; holds what the real one holds on the GPU, computes as it does."""

        def __init__(self, linear: nn.Linear) -> None:
            nn.Module.__init__(self)
            self.out_features, self.in_features = linear.weight.shape
            count = linear.weight.numel()
            self.weight = nn.Parameter(_empty((count // 2, 1), torch.uint8), requires_grad=False)
            self.weight.compress_statistics, self.weight.quant_type = double, "nf4"
            blocks = -(-count // NF4_BLOCK)
            constants = {"code": _empty(16, torch.float32)}
            if double:
                constants["absmax"] = _empty(blocks, torch.uint8)
                constants["outer"] = _empty(-(-blocks // NF4_OUTER_BLOCK) or 1, torch.float32)
                constants["outer_code"] = _empty(256, torch.float32)
            else:
                constants["absmax"] = _empty(blocks, torch.float32)
            for name, constant in constants.items():
                self.register_buffer(name, constant, persistent=False)
            self.bias = linear.bias
            self.compute_dtype = torch.bfloat16

        def forward(self, x: Tensor) -> Tensor:
            given = x.dtype
            bias = self.bias
            if bias is not None and bias.dtype != self.compute_dtype:
                bias.data = bias.data.to(self.compute_dtype)  # bitsandbytes keeps the cast one
            shape = (self.out_features, self.in_features)
            x = x.to(self.compute_dtype)
            return _FourBitProduct.apply(x, self.weight, shape, bias).to(given)

    head = model.get_output_embeddings()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and child is not head:
                setattr(module, name, FourBitLinear(child))
    model.is_loaded_in_4bit = True
    model.quantization_method = "bitsandbytes"


def _empty(shape: Any, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=DEVICE)


# ---------------------------------------------------------------- the model


def model_config(given: Mapping[str, Any], args: Namespace) -> Any:
    """Transformers' config object, cut to the layers wanted."""
    fields = {name: value for name, value in given.items() if name != "model_type"}
    for name in ("quantization_config", "auto_map", "dtype", "torch_dtype", "_name_or_path"):
        fields.pop(name, None)
    config = transformers.AutoConfig.for_model(given["model_type"], **fields)
    if args.layers:
        cut_layers(config, args.layers)
    config.use_cache = False
    if getattr(config, "num_experts_per_tok", None):
        config._experts_implementation = args.experts
    return config


def cut_layers(config: Any, layers: int) -> None:
    """Keep the first layers: their number, lists of one entry a layer, lists of layer numbers."""
    every = config.num_hidden_layers
    config.num_hidden_layers = layers
    for name, value in vars(config).items():
        if name == "moe_layers" and value:
            setattr(config, name, [index for index in value if index < layers])
        elif isinstance(value, list) and len(value) == every:
            setattr(config, name, value[:layers])


def build_model(config: Any, args: Namespace) -> tuple[nn.Module, nn.Module, int]:
    """The model as it trains, the Transformers model inside it, and the parameters it has whole."""
    reentrant = {"gradient_checkpointing_kwargs": {"use_reentrant": False}}
    checkpointed = args.checkpointing == "full"
    with torch.device(DEVICE):
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=DTYPES[args.weight_dtype], attn_implementation=args.attention
        )
    parameters = sum(one.numel() for one in model.parameters())
    base = model
    if args.method == "qlora":
        quantize_linears(model, double=not args.single_quant)
    if checkpointed:
        model.gradient_checkpointing_enable(**reentrant)
    if args.kbit_prep:
        model = peft.prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=checkpointed, **reentrant
        )
    if args.method != "full":
        model = adapt(model, config, args)
    model.train()
    return model, base, parameters


def lora_targets(config: Any, wanted: str) -> Any:
    if wanted not in TARGETS:
        return wanted.split(",")
    names = TARGETS[wanted]
    family = config.model_type
    if getattr(config, "kv_lora_rank", None):
        family = "latent"
    return names.get(family) or names.get("") or "all-linear"


def adapt(model: nn.Module, config: Any, args: Namespace) -> nn.Module:
    """The model with PEFT's adapters."""
    if not args.adapt_experts:
        # PEFT >= 0.21 reads a target of Transformers 4's expert linears as the fused tensors of 5.
        expert_targets._convert_peft_config_moe = lambda *_, **__: None
    wanted = peft.LoraConfig(
        r=args.lora_rank,
        lora_alpha=2 * args.lora_rank,
        lora_dropout=args.lora_dropout,
        target_modules=lora_targets(config, args.lora_targets),
        fan_in_fan_out=config.model_type == "gpt2",  # its linears are Conv1D
        task_type="CAUSAL_LM",
    )
    with torch.device(DEVICE):
        model = peft.get_peft_model(
            model, wanted, autocast_adapter_dtype=args.adapter_dtype == "fp32"
        )
    if args.adapter_dtype == "bf16":
        for name, one in model.named_parameters():
            if "lora_" in name:
                one.data = one.data.to(torch.bfloat16)
    return model


def build_optimizer(name: str, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    kind, _, way = name.partition("_")
    if kind == "adamw":
        how = {"fused": way == "fused", "foreach": way == "foreach"}
        return torch.optim.AdamW(parameters, lr=1e-5, **how)
    if kind == "adafactor":
        return transformers.optimization.Adafactor(
            parameters, lr=1e-5, relative_step=False, scale_parameter=False
        )
    return torch.optim.SGD(parameters, lr=1e-5, momentum=0.9 if name == "sgdm" else 0, foreach=True)


# ---------------------------------------------------------------- the step


def layers_of(base: nn.Module, count: int) -> nn.ModuleList:
    found = [m for m in base.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    return found[0]


def mark_phases(base: nn.Module, ledger: Ledger) -> None:
    """Let the model's own calls say when its head, its loss and the layers' backward begin."""
    loss_function = base.loss_function

    def loss(*args: Any, **kwargs: Any) -> Tensor:
        ledger.begin("fwd_loss")
        return loss_function(*args, **kwargs)

    def head(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        ledger.begin("fwd_head")
        if args[0].requires_grad:
            args[0].register_hook(lambda _: ledger.begin("bwd_layers"))

    base.loss_function = loss
    base.get_output_embeddings().register_forward_pre_hook(head)


class LayerLog:
    """For each layer the bytes live when it begins, forward and backward, as phases of their own."""

    def __init__(self, layers: nn.ModuleList, ledger: Ledger) -> None:
        self.starts: dict[str, int] = {}
        self._ledger = ledger
        for index, layer in enumerate(layers):
            layer.register_forward_pre_hook(self._forward(index))
            layer.register_forward_hook(self._watch_backward(index))

    def _start(self, phase: str) -> None:
        self._ledger.begin(phase)
        self.starts[phase] = self._ledger.total

    def _forward(self, index: int) -> Any:
        def begins(*_: Any) -> None:
            if self._ledger.phase.startswith("fwd"):  # not when recomputed
                self._start(f"fwd_{index}")

        return begins

    def _watch_backward(self, index: int) -> Any:
        def ends(module: nn.Module, args: Any, out: Any) -> None:
            hidden = out[0] if isinstance(out, tuple) else out
            if hidden.requires_grad and self._ledger.phase.startswith("fwd"):
                hidden.register_hook(lambda _: self._start(f"bwd_{index}"))

        return ends

    def report(self) -> Iterator[dict[str, int]]:
        """Per layer what it keeps, and its working sets above what was live when it began."""
        count = sum(phase.startswith("fwd") for phase in self.starts)
        for index in range(count):
            row = {"layer": index}
            if index + 1 < count:
                row["kept"] = self.starts[f"fwd_{index + 1}"] - self.starts[f"fwd_{index}"]
            for way in ("fwd", "bwd"):
                phase = f"{way}_{index}"
                if phase in self.starts and phase in self._ledger.peaks:
                    row[way] = self._ledger.peaks[phase]["bytes"] - self.starts[phase]
            yield row


def trace(given: Mapping[str, Any], args: Namespace) -> dict[str, Any]:
    """Run one training step with its states in place, and say what it held at each phase's peak."""
    take_the_path_of_real_tensors(args.padding_mask)
    ledger = Ledger()
    with FakeTensorMode(allow_non_fake_inputs=True):
        return _trace(given, args, ledger)


def _trace(given: Mapping[str, Any], args: Namespace, ledger: Ledger) -> dict[str, Any]:
    config = model_config(given, args)
    model, base, parameters = build_model(config, args)
    for held in (*model.parameters(), *model.buffers()):
        ledger.enter(held, "params")
    trained = [one for one in model.parameters() if one.requires_grad]

    # The states exist before the step that counts: one step is taken unseen.
    optimizer = build_optimizer(args.optimizer, trained)
    for one in trained:
        one.grad = torch.empty_like(one)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    gc.collect()
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                ledger.enter(value, "states")
    for one in trained:
        one.register_post_accumulate_grad_hook(lambda one: ledger.enter(one.grad, "grads"))
        if args.grad_accum > 1:
            one.grad = torch.empty_like(one)
            ledger.enter(one.grad, "grads")

    tokens = torch.randint(0, 100, (args.micro_batch, args.seq_len), device=DEVICE)
    batch = {"input_ids": tokens, "labels": tokens.clone()}
    if args.padding_mask:
        batch["attention_mask"] = torch.ones_like(tokens)
    for tensor in batch.values():
        ledger.enter(tensor, "inputs")

    mark_phases(base, ledger)
    log = LayerLog(layers_of(base, config.num_hidden_layers), ledger) if args.by_layer else None
    if args.autocast:  # what Accelerator.prepare does to a model's forward
        forward = torch.autocast(DEVICE, dtype=torch.bfloat16)(model.forward)
        model.forward = accelerate.utils.convert_outputs_to_fp32(forward)

    held_before = Counter(ledger.by_purpose)
    with ledger:
        ledger.begin("fwd")
        outputs = model(**batch)
        loss = outputs["loss"]
        ledger.begin("fwd_end")
        ledger.note_peak()
        del outputs  # as a training loop that reads the loss alone
        kept = ledger.by_purpose["kept"]
        ledger.purpose = "working"
        ledger.begin("bwd_loss")
        loss.backward()
        ledger.begin("bwd_end")
        ledger.note_peak()
        del loss
        grads = ledger.by_purpose["grads"]
        ledger.begin("clip")
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        ledger.begin("step")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ledger.begin("end")
        ledger.note_peak()

    peak_phase = max(ledger.peaks, key=lambda phase: ledger.peaks[phase]["bytes"])
    return {
        "parameters": parameters,
        "trained": sum(one.numel() for one in trained),
        "layers": config.num_hidden_layers,
        "params_bytes": held_before["params"],
        "optstate_bytes": held_before["states"],
        "grads_bytes": grads,
        "kept_bytes": kept,
        "peak_bytes": ledger.peaks[peak_phase]["bytes"],
        "peak_phase": peak_phase,
        "phases": ledger.peaks,
        "attention_kernels": dict(ledger.attention_kernels),
        "versions": " ".join(
            f"{one.__name__} {one.__version__}" for one in (torch, transformers, peft, accelerate)
        ),
        **({"by_layer": list(log.report())} if log else {}),
    }
