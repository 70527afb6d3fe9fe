"""Write the encoder and the decoder of a model as files that run without vae_exp: ONNX, and torch.export's programs."""

import copy
import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from vae_exp.errors import UserError, first_line, require_extra
from vae_exp.evaluation.codes import posterior_tensors
from vae_exp.files import making, partial_of, writing
from vae_exp.vae import VAE

Tensors = dict[str, Tensor]  # inputs or outputs by name, each [N, ...]
Run = Callable[[Tensors], Tensors]
BATCHES = (7, 1)  # sizes in which a file is run and compared with PyTorch
TOLERANCE = 1e-5  # of outputs up to 1, and of larger ones relative to the largest
ABOUT = "about.json"  # inside a .pt2 file


class Encoder(nn.Module):
    """Give what q(z|x) has of images [N, C, H, W] in [0, 1]."""

    unused = ("decoder", "likelihood", "prior")

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor, **conditions: Tensor) -> Tensors:
        return posterior_tensors(self.vae.encode(image, _labels(image, conditions)))


class Decoder(nn.Module):
    """Give the mean of p(x|z) at codes [N, Z], [N, C, H, W]."""

    unused = ("encoder", "posterior", "prior")

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, z: Tensor, **conditions: Tensor) -> Tensors:
        return {"image": self.vae.decode(z, _labels(z, conditions)).mean}


PARTS: dict[str, type[Encoder] | type[Decoder]] = {"encoder": Encoder, "decoder": Decoder}


def _labels(x: Tensor, conditions: Tensors) -> Tensor:
    return conditions["label"] if conditions else torch.zeros(len(x), dtype=torch.long)


@torch.no_grad()
def write(model: VAE, path: Path, about: Mapping[str, Any]) -> dict[str, float]:
    """Write the part of a model that path names, as .onnx or .pt2, with JSON values that say what it is.

    The file is run in two sizes of batch before it takes its place; returned is how far each of its outputs is from
    PyTorch's. Raises UserError if that is too far, and if the part cannot be traced or the file cannot be written.
    """
    name = _part(path)
    if path.suffix == ".onnx":
        require_extra("onnx", str(path), "A .pt2 file needs nothing.")
    inputs = [_examples(model, name, n) for n in BATCHES]
    part = PARTS[name](copy.deepcopy(model).cpu())
    for other in part.unused:
        setattr(part.vae, other, None)
    expected = [_call(part, tensors) for tensors in inputs]
    program = _trace(part, name, inputs[0])
    with writing(path), making(path.parent):
        partial = partial_of(path)
        partial.mkdir()
        try:
            run = FORMATS[path.suffix](program, name, inputs[0], list(expected[0]), partial / path.name, about)
            differences = _compare(path, [run(tensors) for tensors in inputs], expected)
            for file in partial.iterdir():  # the weights of a large ONNX file lie beside it
                file.replace(path.with_name(file.name))
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return differences


def _part(path: Path) -> str:
    name = path.stem.replace("_", "-").split("-")[-1]
    if name not in PARTS:
        such_as = f"encoder{path.suffix} or decoder{path.suffix}"
        raise UserError(f"{path}: such a file holds one part of a model: name it {such_as}, or NAME-{such_as}.")
    return name


def _examples(model: VAE, name: str, n: int) -> Tensors:
    """Return n codes of the prior, or n images drawn at them, with labels where the model takes them."""
    noise = torch.Generator().manual_seed(0)
    y = torch.arange(n, device=model.device) % max(model.n_classes, 1)
    z = model.prior_sample(n, noise, y) if model.stochastic else torch.randn(n, model.z_dim, generator=noise)
    conditions = {"label": y.cpu()} if model.n_classes else {}
    if name == "decoder":
        return {"z": z.cpu()} | conditions
    return {"image": model.decode(z.to(model.device), y).mean.clamp(0, 1).cpu()} | conditions


def _call(module: Callable[..., Tensors], tensors: Tensors) -> Tensors:
    first, *conditions = tensors.items()
    return module(first[1], **dict(conditions))


def _trace(part: nn.Module, name: str, tensors: Tensors) -> ExportedProgram:
    (first, values), *conditions = tensors.items()
    n = {0: torch.export.Dim("N")}
    shapes = {first: n, "conditions": {condition: n for condition, _ in conditions}}
    try:  # strict: else len(x) makes a constant of the size of the batch
        program = torch.export.export(part, (values,), dict(conditions), dynamic_shapes=shapes, strict=True)
    except Exception as error:  # of any class
        raise UserError(f"{name}: torch.export cannot trace it ({first_line(error)}).") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # which names folders of this machine
    return program


def _write_onnx(
    program: ExportedProgram, name: str, tensors: Tensors, outputs: list[str], path: Path, about: Mapping[str, Any]
) -> Run:
    import onnxruntime

    names: dict[str, Any] = {"input_names": list(tensors), "output_names": outputs}
    shapes = {name: {0: "N"} for name in tensors}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            written = torch.onnx.export(program, dynamo=True, verbose=False, dynamic_shapes=shapes, **names)
        except Exception as error:
            raise UserError(f"{name}: torch.onnx cannot write it ({first_line(error)}).") from error
    assert written is not None
    for key, value in about.items():
        written.model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)
    written.save(str(path))  # above 2 GB with the weights in a file of their own
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(tensors: Tensors) -> Tensors:
        arrays = session.run(outputs, {name: values.numpy() for name, values in tensors.items()})
        return {name: torch.from_numpy(array) for name, array in zip(outputs, arrays, strict=True)}

    return run


def _write_program(
    program: ExportedProgram, name: str, tensors: Tensors, outputs: list[str], path: Path, about: Mapping[str, Any]
) -> Run:
    with path.open("xb") as file:
        torch.export.save(program, file, extra_files={ABOUT: json.dumps(about)})
    module = torch.export.load(path).module()
    return lambda tensors: _call(module, tensors)


FORMATS = {".onnx": _write_onnx, ".pt2": _write_program}


def _compare(path: Path, given: list[Tensors], expected: list[Tensors]) -> dict[str, float]:
    """Return the largest difference of each output. Raises UserError for one that is more than rounding."""
    result = {}
    for name in expected[0]:
        pairs = [(a[name], b[name]) for a, b in zip(given, expected, strict=True)]
        result[name] = max((a - b).abs().max().item() for a, b in pairs)
        largest = max(b.abs().max().item() for _, b in pairs)
        if not result[name] <= TOLERANCE * max(1.0, largest):
            raise UserError(f"{path}: its {name} differs by {result[name]:.1e} from PyTorch's; it was not written.")
    return result
