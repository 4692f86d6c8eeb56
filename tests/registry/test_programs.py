"""What of an exported program counts as data, and what would run when it is loaded."""

import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from crafted import Touches, edit, pickled
from torch import nn

from mlflow_unlearn.engine.architectures import build_model
from mlflow_unlearn.registry.programs import code_in_program


def graph(program: Path) -> dict:
    with zipfile.ZipFile(program) as archive:
        return json.loads(archive.read("model/models/model.json"))


def test_a_program_of_ours_is_data(program):
    assert code_in_program(program) is None


def exported(module: nn.Module, shape: tuple[int, ...], folder: Path, dims: dict) -> Path:
    program = torch.export.export(module.eval(), (torch.zeros(2, *shape),), dynamic_shapes=[dims])
    torch.export.save(program, folder / "model.pt2")
    return folder / "model.pt2"


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("architecture", "side"),
    [
        ("resnet18", 64), ("torchvision:mobilenet_v3_small", 64), ("torchvision:efficientnet_b0", 64),
        ("torchvision:shufflenet_v2_x0_5", 64), ("torchvision:swin_v2_t", 256), ("timm:convnext_atto", 64),
        ("timm:vit_tiny_patch16_224", 224), ("timm:mobilevit_xxs", 64), ("timm:edgenext_xx_small", 64),
    ],
)  # fmt: skip
def test_programs_of_usual_architectures_are_data(tmp_path, architecture, side):
    module = build_model(architecture, 10, (3, side, side))
    assert code_in_program(exported(module, (3, side, side), tmp_path, {0: torch.export.Dim("batch")})) is None


class Sizes(nn.Module):
    """Looks at sizes, and has them in its graph and guards."""

    def forward(self, x):
        height, width = x.shape[-2:]
        if len(x) * height > 7 and height % 4 == 0 and height**2 < 10**6 and max(height, width) < 900:
            x = x * 2
        if (len(x) + 1) // 2 < 900:
            x = x.relu_().clamp_(max=6.0)
        x = nn.functional.interpolate(x, (height // 2, int(width * 0.5)), mode="bilinear")
        x = x.masked_fill(x > 5, float("-inf")).masked_fill(x < 5, 0.0)
        return torch.einsum("bchw->bc", nn.functional.gelu(x, approximate="tanh"))


def test_sizes_and_guards_are_data(tmp_path):
    auto = torch.export.Dim.AUTO
    made = exported(Sizes(), (3, 64, 64), tmp_path, {0: auto, 2: auto, 3: auto})
    assert len(graph(made)["guards_code"]) > 5
    assert code_in_program(made) is None


def guard(json: dict, code: str) -> None:
    json["guards_code"] = [code]


def size(json: dict, code: str) -> None:
    """What stands for the number of images."""
    for tensor in json["graph_module"]["graph"]["tensor_values"].values():
        for part in tensor["sizes"]:
            if "as_expr" in part:
                part["as_expr"]["expr_str"] = code


def operation(json: dict, code: str) -> None:
    json["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.system"
    json["graph_module"]["graph"]["nodes"][0]["inputs"] = [{"name": "", "arg": {"as_string": "touch_"}, "kind": 1}]


def name(json: dict, code: str) -> None:
    json["graph_module"]["graph"]["inputs"][0] = {"as_tensor": {"name": f"x={code}"}}


def nesting(json: dict, code: str) -> None:
    context = '{"default_factory_module": "antigravity", "default_factory_name": "x", "dict_context": []}'
    spec = [1, {"type": "collections.defaultdict", "context": context, "children_spec": []}]
    json["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = __import__("json").dumps(spec)


def enumeration(json: dict, code: str) -> None:
    context = '[{"__enum__": true, "fqn": "antigravity:x", "name": "y"}]'
    spec = [1, {"type": "builtins.dict", "context": context, "children_spec": []}]
    json["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = __import__("json").dumps(spec)


def imported(json: dict, code: str) -> None:
    """Names alone; loading imports the module."""
    spec = [
        1,
        {"type": "builtins.dict", "context": '{"__enum__": 1, "fqn": "antigravity", "name": "y"}', "children_spec": []},
    ]
    json["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = __import__("json").dumps(spec)


def constant(json: dict, code: str) -> None:
    json["graph_module"]["graph"]["inputs"].append({"as_string": code})


def constant_argument(json: dict, code: str) -> None:
    spec = {"constant_input": {"name": "mode", "value": {"as_string": code}}}
    json["graph_module"]["signature"]["input_specs"].append(spec)


def beside_a_target(json: dict, code: str) -> None:
    """Only what stands in the metadata of an operation is for people."""
    json["graph_module"]["graph"] |= {"target": "torch.ops.aten.relu.default", "metadata": {"x": code}}


def metadata(json: dict, code: str) -> None:
    json["graph_module"]["metadata"] = {"target": "torch.ops.aten.relu.default", "metadata": code}


def key(json: dict, code: str) -> None:
    json["range_constraints"][code] = {"min_val": 0, "max_val": None}


def number(json: dict, code: str) -> None:
    json["range_constraints"]["s0"] = {"min_val": code, "max_val": None}


def list_of_names(json: dict, code: str) -> None:
    json["graph_module"]["graph"]["nodes"][0]["name"] = [code]


def custom(json: dict, code: str) -> None:
    json["graph_module"]["graph"]["nodes"][0]["inputs"][0]["arg"] = {"as_operator": "torch.os.system"}


CODE = "__import__('os').system('touch made')"
CHANGES = [
    *(guard, size, operation, name, nesting, enumeration, imported, constant, constant_argument, beside_a_target),
    *(metadata, key, number, list_of_names, custom),
]


def changed(program: Path, folder: Path, content: dict) -> Path:
    return edit(program, folder / "model.pt2", **{"models/model.json": json.dumps(content).encode()})


@pytest.mark.parametrize("code", [CODE, f"1 # ' + str({CODE}) + '"], ids=["plain", "comment"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_graph_that_runs_code(program, tmp_path, change, code):
    """Its JSON alone, without any pickle; `torch.export.load` evaluates it."""
    content = graph(program)
    change(content, code)
    assert "is more than a graph (models/model.json: " in code_in_program(changed(program, tmp_path, content))


@pytest.mark.parametrize("change", [guard, size])
@pytest.mark.parametrize(
    "text",
    [
        "1 # x",
        "1\n",
        "'x'",
        "Symbol('s0') + Symbol('x y')",
        "Symbol('s0') ^ 2",
        "Symbol('s0')[0]",
        "Symbol('s0').name",
        "print(1)",
        "__import__",
        "Symbol('s0', **x)",
        "Symbol(*x)",
        "(lambda: 1)()",
        "9**9**9",
        "Pow(Integer(9), Pow(Integer(9), Integer(9)))",
        "Pow(Pow(Integer(99), Integer(9)), Integer(9))",
        "Pow(Integer(9), Integer(387420489))",
        "Integer(99999999999999999999)",
        "1_0",
        "L['x'].size()[0] and L['x'].storage()",
        "L['x');'].size()[0]",
        "L['x'].size()[f()]",
        "Float('1e999999999')",
        "٣",
    ],
)
def test_what_is_no_arithmetic(program, tmp_path, change, text):
    """Evaluated by Python or by sympy, which reads it in its own way, or without an end."""
    content = graph(program)
    change(content, text)
    assert f"is more than a graph (models/model.json: {text[:80]!r})" == code_in_program(
        changed(program, tmp_path, content)
    )


OPERATIONS = {
    "from_file.default": {"filename": "helper.py"},
    "from_file.out": {"filename": "mean"},
    "save.default": {"filename": "mean"},
    "copy_.save": {},
    "warn.default": {"message": "none"},
    "_print.default": {},
    "manual_seed.default": {},
    "set_.source_Tensor": {},
    "set_data.default": {},
    "resize_.default": {},
    "as_strided_.default": {},
    "add.out": {},
    "add.op": {},
    "add.__class__": {},
    "name.upper": {},
    "_foreach_copy.default": {},
    "record_stream.default": {},
    "segment_reduce.default": {"reduce": "sum"},
    "fbgemm_linear_fp16_weight.default": {},
    "nothing.default": {},
    "gelu.default": {"approximate": "helper.py"},
    "div.Tensor_mode": {"rounding_mode": "'"},
    "pad.default": {"self": "constant"},
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_that_do_more_than_compute(program, tmp_path, operation):
    content = graph(program)
    inputs = [{"name": name, "arg": {"as_string": text}, "kind": 1} for name, text in OPERATIONS[operation].items()]
    node = content["graph_module"]["graph"]["nodes"][0]
    node |= {"target": f"torch.ops.aten.{operation}", "inputs": [*inputs, *node["inputs"]]}
    assert "is more than a graph (models/model.json: " in code_in_program(changed(program, tmp_path, content))


@pytest.mark.parametrize("operation", ["relu_.default", "batch_norm.default", "gelu.default", "_to_copy.default"])
def test_operations_of_classifiers(program, tmp_path, operation):
    content = graph(program)
    content["graph_module"]["graph"]["nodes"][0]["target"] = f"torch.ops.aten.{operation}"
    assert code_in_program(changed(program, tmp_path, content)) is None


@pytest.mark.parametrize(
    "target",
    [
        *(
            "torch.ops.higher_order.wrap_with_anything",
            "torch.sym_anything",
            "torch.load",
            "torch.hub.load",
            "_operator.call",
        ),
        *(
            "torch.ops.prims.iota.default",
            "torch.ops.aten.relu",
            "torch.ops.aten.relu.default.x",
            "#x:y",
            "math.factorial",
        ),
    ],
)
def test_targets_that_are_no_operations(program, tmp_path, target):
    content = graph(program)
    content["graph_module"]["graph"]["nodes"][0]["target"] = target
    assert f"is more than a graph (models/model.json: {target!r})" == code_in_program(
        changed(program, tmp_path, content)
    )


def test_a_graph_really_runs_code(program, tmp_path):
    """Else the tests above would be about nothing."""
    content, made = graph(program), tmp_path / "made"
    size(content, f"__import__('pathlib').Path({str(made)!r}).touch() or 2")
    try:
        torch.export.load(changed(program, tmp_path, content))
    except Exception as error:  # the graph makes no sense any more
        assert made.exists(), error
    assert made.exists()


def test_a_key_of_the_sample_inputs_gets_into_the_source(program, tmp_path, monkeypatch):
    """Of the guards' messages; torch's restricted unpickler takes it."""
    monkeypatch.chdir(tmp_path)
    images = torch.zeros(2, 1, 8, 8)
    evil = 'a"+str(open(chr(109), chr(119)))+"b'  # open("m", "w")
    for key, found in (("image", None), (evil, "holds a pickle (data/sample_inputs/model.pt)")):
        inputs = pickled((({key: images},), {}))
        made = edit(program, tmp_path / "model.pt2", **{"sample_inputs/model.pt": inputs})
        assert code_in_program(made) == found
        assert not Path("m").exists()
    torch.export.load(made).module()(images)
    assert Path("m").exists()


def raw_as_pickle(program: Path, tmp_path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(program) as archive:
        config = json.loads(archive.read("model/data/weights/model_weights_config.json"))
    next(iter(config["config"].values()))["use_pickle"] = True
    evil = pickled(Touches(tmp_path / "made"))
    return {"model_weights_config.json": json.dumps(config).encode(), "weights/weight_0": evil}


@pytest.mark.parametrize(
    ("records", "says"),
    [
        (lambda p, t: {"data/sample_inputs/model.pt": pickled(((Touches(t / "made"),), {}))}, "holds a pickle"),
        (raw_as_pickle, "holds a pickle (data/weights/weight_0)"),
        (lambda p, t: {"data/constants/opaque_obj_0": pickle.dumps(Touches(t / "made"))}, "holds a pickle"),
        (lambda p, t: {"data/weights/model.pt": pickled({"x": Touches(t / "made")})}, "holds a pickle"),
        (lambda p, t: {"serialized_constants.pt": pickled({"x": Touches(t / "made")})}, "cannot be read before"),
        (lambda p, t: {"data/aotinductor/model/a.so": b"\x7fELF"}, "brings a compiled library"),
        (lambda p, t: {"models/other.json": b"{"}, "is more than a graph (models/other.json"),
        (lambda p, t: {"models/other.json": b"[" * 100_000}, "is more than a graph (models/other.json"),
        (lambda p, t: {"model_weights_config.json": b'{"config": 3}'}, "holds a pickle (data/weights/weight_"),
    ],
    ids=["inputs", "weight", "constant", "weights", "old", "library", "cut", "deep", "config"],
)
def test_an_archive_that_runs_code(program, tmp_path, records, says):
    assert says in code_in_program(edit(program, tmp_path / "model.pt2", **records(program, tmp_path)))
    assert not (tmp_path / "made").exists()


def test_what_is_not_an_archive(tmp_path):
    (tmp_path / "model.pt2").write_bytes(b"PK")
    assert code_in_program(tmp_path / "model.pt2") == "cannot be read before it is loaded"
