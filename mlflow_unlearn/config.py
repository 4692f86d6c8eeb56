"""What each command takes: one definition of names, defaults and help for the shell, MLproject and the run's record.

Each class is one command; its fields are the options (``model_uri`` is ``--model-uri`` in the shell). An empty value
means "not given", since MLproject has no other way to say it.
"""

import os
import re
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from mlflow_unlearn.console import conceal, first_line, storable
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.metrics.catalog import OBJECTIVES
from mlflow_unlearn.parsing import load_options, read_text
from mlflow_unlearn.spelling import command_line, spelled

if TYPE_CHECKING:
    Objective = str
else:
    Objective = Literal[tuple(OBJECTIVES)]

Text = Annotated[str | None, BeforeValidator(lambda value: value or None)]
"""An optional string: the empty one counts as not given."""

_EMPTY_IS_NONE = BeforeValidator(lambda value: None if value == "" else value)
"""For an optional number."""

_SOURCES = (
    "Data source: digits, torchvision:NAME@ROOT, folder:PATH, shards:PATH, csv:PATH (,file=COLUMN,label=COLUMN) or "
    "python:module:function, followed by ,seed=N, ,train=20% or ,split=FILE"
)

Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
SplitBy = Annotated[
    Text,
    Field(
        description="What a model registered by another tool was trained on, where the source has no split: a file of "
        "the training ids, or drawn if it is the split that this tool draws."
    ),
]

# Options of several commands as types and not as base classes: pydantic puts inherited fields first, and `--help`,
# MLproject and config.yaml list the options of a command in the order of its own body.
ForgetSpec = Annotated[
    Text, Field(description="Forget spec to use instead of the pending requests; it is filed as a request of its own.")
]
HashIds = Annotated[bool, Field(description="Store salted SHA-256 hashes of the forgotten ids instead of the ids.")]
Prefix = Annotated[
    str,
    Field(
        description="Freeze the layers before this module and run them once: a name such as layer4, auto "
        "(see docs/prefix.md) or none."
    ),
]
GoldUri = Annotated[Text, Field(description="A model retrained without the forget set, for comparison.")]
RegisterAs = Annotated[Text, Field(description="Name to register under; default: the name of the source.")]
PublicKey = Annotated[Text, Field(description="Public EC key (PEM file) to check the evidence's signature.")]
Remark = Annotated[Text, AfterValidator(storable)]
"""What somebody writes for the record."""
Reason = Annotated[Remark, Field(description="Why, for the record.")]

STORAGE_VARIABLE = "MLFLOW_UNLEARN_STORAGE"
"""Holds the storage's URL for the processes that a command starts; `as_arguments` names it."""
_VARIABLE = "env:"


def _storage_url(value: str) -> str:
    """The URL, of the environment where ``env:NAME`` says so: what is typed can be read in every list of processes."""
    name = value.removeprefix(_VARIABLE)
    if value.startswith(_VARIABLE) and not os.environ.get(name):
        raise ValueError(f"there is no environment variable {name!r}: set it to the database's URL")
    return conceal(os.environ[name] if value.startswith(_VARIABLE) else value)


def _day(value: str | None) -> str | None:
    """An ISO date."""
    try:
        return value and date.fromisoformat(value).isoformat()
    except ValueError as error:
        raise ValueError("give a day as YYYY-MM-DD, such as 2026-12-24") from error


_RESERVED = ("all", "auto", "original", "floor")
"""What stands in the place of methods in options and tables."""


def _method_name(value: str) -> str:
    """A name that can be a module, a distribution and a value of ``methods``."""
    if value in _RESERVED:
        raise ValueError(f"{', '.join(_RESERVED)} have a meaning of their own where methods are named: take another")
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", value):
        parts = re.findall(r"[A-Z]*[a-z0-9]+|[A-Z]+", value)
        near = "_".join(parts).lower().lstrip("0123456789_") or "my_idea"
        raise ValueError(f"give small letters, digits and single _, beginning with a letter, such as {near}")
    return value


class Command(BaseModel):
    """Base of all commands."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    example: ClassVar[str] = ""
    makes_run: ClassVar[bool] = True
    makes_store: ClassVar[bool] = False
    """Whether a SQLite file that is not there is made; other commands are about what is there."""

    format: Literal["table", "json"] = Field(
        "table",
        description="table: for people; json: one JSON document on standard output, the rest on standard error.",
    )
    debug: bool = Field(False, description="Show the traceback of an error, and every warning of libraries.")


class HardwareOptions(BaseModel):
    """Where and how to compute."""

    device: str = Field("auto", description="cpu, cuda, cuda:1, … or auto: CUDA if there is a GPU.")
    precision: Literal["fp32", "tf32", "bf16", "auto"] = Field(
        "fp32", description="fp32, tf32, bf16, or auto: whichever is fastest in a few timed steps on this machine."
    )
    num_workers: Annotated[Annotated[int, Field(ge=0, le=256)] | None, _EMPTY_IS_NONE] = Field(
        None, description="Data-loading processes; default: chosen from the data and the machine."
    )
    compile: bool = Field(False, description="Compile the model for training (torch.compile); worthwhile in long runs.")
    processes: int = Field(1, ge=1, le=4096, description="Processes on this machine that share each batch.")


Architecture = Annotated[
    Text,
    Field(description="timm:NAME, torchvision:NAME or module:factory, to rebuild a version in pt2 format."),
]
Transform = Annotated[Text, Field(description="Input transform: none, timm, imagenet or python:module:function.")]
Classes = Annotated[
    Text,
    Field(
        description="Class names in the order of the model's outputs, separated by commas, or a file with one per line."
    ),
]


class LoadOptions(BaseModel):
    """What opening a version may do."""

    no_code: bool = Field(
        False,
        description="Refuse anything that would run code when loaded: a pickle, code/, python:, module:factory.",
    )


class ReadOptions(LoadOptions):
    """How a registered version and its data are read, where the version's own record is missing or wrong."""

    data: Text = Field(None, description=f"{_SOURCES}; default: the version's own record.")
    split: SplitBy = None
    architecture: Architecture = None
    transform: Transform = None
    classes: Classes = None
    force: bool = Field(False, description="Continue despite low accuracy on the training data.")
    plan: bool = Field(False, description="Dry run: only print the time, memory and disk space that this would take.")


class PublishOptions(ReadOptions):
    """What is published with the version that is registered."""

    show_samples: bool = Field(
        False, description="Show forgotten images in the report; do not use it with personal data."
    )
    sign_key: Text = Field(
        None, description="Private EC key (PEM file) to sign the evidence with; needs the extra [sign]."
    )


class Train(HardwareOptions, Command):
    """Train a classifier and register it; with --exclude, the gold standard."""

    example = "mlflow-unlearn train --data digits --name clf"
    makes_store = True

    data: str = Field(description=f"{_SOURCES}.")
    name: str = Field(description="Name of the registered model.")
    architecture: str = Field(
        "resnet18",
        description="resnet18, vit_tiny, vit_small, vit_base, timm:NAME, torchvision:NAME or module:factory.",
    )
    transform: str = Field("none", description="Input transform: none, timm, imagenet or python:module:function.")
    augment: Literal["none", "crop-flip"] = Field("none", description="Random augmentation of the training images.")
    exclude: Text = Field(None, description="Request id or forget spec to leave out of training: the gold standard.")
    canaries: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Pairs of samples, one of each drawn at random for training and the other left out, for the "
        "exact test of `audit`.",
    )
    from_: Text = Field(
        None,
        alias="from",
        description="Version whose training to continue, with data that adds new samples to those it was trained on.",
    )
    train_on: Literal["all", "new"] = Field(
        "all", description="With --from: train on all samples, or only on the new ones."
    )
    keep_checkpoints: int = Field(
        0,
        ge=0,
        le=9999,
        description="Checkpoints of the training to keep, evenly spaced, for `unlearn --method rewind`.",
    )
    ensemble: int = Field(
        0, ge=0, le=1024, description="Train this many sub-models, each on its own shard, for `unlearn --method exact`."
    )
    slices: int = Field(
        1, ge=1, le=1024, description="With --ensemble: parts of a shard, with a checkpoint after each."
    )
    group: Text = Field(
        None,
        description="With --ensemble: keep samples with the same value of this column, such as subject, in one shard.",
    )
    prefix: str = Field(
        "none",
        description="With --ensemble: freeze and share all layers before this module; auto: before the last one.",
    )
    weights: Text = Field(
        None,
        description="With --ensemble: pretrained weights to start from, models:/NAME/VERSION or a .safetensors or .pt "
        "file; the layers before the prefix keep them.",
    )
    epochs: int = Field(15, ge=1, le=10000, description="Passes over the training set.")
    batch_size: int = Field(128, ge=2, le=65536, description="Samples per step.")
    lr: float = Field(0.05, gt=0, le=10, description="Peak of the one-cycle learning rate (SGD, Nesterov momentum).")
    weight_decay: float = Field(5e-4, ge=0, le=1, description="Weight decay.")
    serialization: Literal["pt2", "pickle"] = Field("pt2", description="Format of the logged model.")
    seed: Seed = Field(0, description="Seed of initial weights and order.")


class Request(LoadOptions, Command):
    """File a forget request on one or more model versions; the next `unlearn` of each fulfils it."""

    example = "mlflow-unlearn request --model-uri models:/clf/1 --forget ids.csv --reason 'GDPR article 17'"

    forget: str = Field(
        description="Samples to forget: a file of ids, random:10% or random:500 (,seed=N ,plain), class:NAME, "
        "group:COLUMN=VALUE, request:ID."
    )
    model_uri: Text = Field(
        None,
        description="The version that was trained on the samples: models:/NAME/VERSION; several with commas.",
    )
    all_: bool = Field(
        False, alias="all", description="Instead of --model-uri: file it on every version that `locate` finds."
    )
    due: Annotated[Text, AfterValidator(_day)] = Field(
        None, description="Day by which to fulfil it, such as 2026-12-24; default: in 30 days."
    )
    data: Text = Field(None, description="Data source; default: the version's own record.")
    split: SplitBy = None
    architecture: Architecture = None
    transform: Transform = None
    classes: Classes = None
    reason: Reason = None
    requester: Remark = Field(None, description="Pseudonym of the person who asks, for the record.")
    hash_ids: bool = Field(False, description="Store salted SHA-256 hashes of the ids instead of the ids.")
    canaries: Annotated[Annotated[int, Field(ge=0)] | None, _EMPTY_IS_NONE] = Field(
        None,
        description="Trained canaries to add to the request; default: a fifth of all, at least 48.",
    )


class Unlearn(HardwareOptions, PublishOptions, Command):
    """Unlearn the pending requests of a model version and register the result as a new version."""

    example = "mlflow-unlearn unlearn --model-uri models:/clf/1"

    model_uri: str = Field(
        description="The version to unlearn: models:/NAME/VERSION, models:/NAME@ALIAS, models:/m-ID, runs:/ID/model."
    )
    forget: ForgetSpec = None
    hash_ids: HashIds = False
    method: str = Field("lotus", description="Unlearning method; see `mlflow-unlearn methods`.")
    params: Text = Field(
        None, description="Hyperparameters: alpha=8,epochs=5, JSON or a YAML file; default: the published settings."
    )
    preset: Text = Field(
        None, description="Other published settings by name, such as authors-large; see `mlflow-unlearn methods`."
    )
    until: Literal["once", "pass"] = Field(
        "once",
        description="once: run the method once; pass: try ever stronger settings until one passes the policy on the "
        "validation set.",
    )
    policy: Text = Field(
        None, description="With --until pass: the policy to pass, a YAML file; default: that of `review`."
    )
    rungs: Text = Field(
        None,
        description="With --until pass: what to try, in this order: methods separated by commas, or a list of "
        "settings as JSON or a YAML file.",
    )
    budget: float = Field(
        0.5,
        gt=0,
        le=10,
        description="With --until pass: what all attempts together may cost, as a multiple of retraining.",
    )
    claim: Literal["approximate", "exact"] = Field(
        "approximate",
        description="With --plan true: the claim that you need; the cheapest way to it is recommended.",
    )
    prefix: Prefix = "none"
    gold_uri: GoldUri = None
    register_as: RegisterAs = None
    seed: Seed = Field(0, description="Seed of everything random.")


class Tune(HardwareOptions, PublishOptions, Command):
    """Search hyperparameters with Optuna, judged on the validation set, and register the best."""

    example = "mlflow-unlearn tune --model-uri models:/clf/1 --n-trials 20"

    model_uri: str = Field(description="The version to unlearn: models:/NAME/VERSION, models:/NAME@ALIAS, …")
    n_trials: int = Field(
        20,
        ge=1,
        le=100000,
        description="Total number of trials; the first ones are the methods' published settings.",
    )
    timeout: Annotated[Annotated[float, Field(gt=0)] | None, _EMPTY_IS_NONE] = Field(
        None, description="Seconds after which no new trial starts; the best so far is registered."
    )
    methods: str = Field(
        "auto",
        description="Methods to search over, separated by commas, or all; auto: lotus, and a method that disturbs and "
        "repairs such a model.",
    )
    mode: Literal["constrained", "pareto"] = Field(
        "constrained",
        description="constrained: one objective under constraints; pareto: the Pareto front of the objective and "
        "acc_val.",
    )
    objective: Objective = Field(
        "rf_jsd_advantage_val",
        description="What to minimise; rf_jsd_advantage_val = rf_jsd_val + mia_advantage_val; avg_gap_… need a gold.",
    )
    space: Text = Field(
        None, description='Search space, JSON or a YAML file: {"alpha": [1, 16]}; default: that of the methods.'
    )
    sampler: Literal["tpe", "gp", "nsga2", "qmc", "random", "grid"] = Field("tpe", description="Optuna's sampler.")
    pruner: Literal["none", "median", "hyperband"] = Field(
        "none", description="Stop bad trials early, by their values after each epoch; not with --mode pareto."
    )
    storage: Annotated[str, AfterValidator(_storage_url)] = Field(
        "sqlite:///optuna.db",
        description="Optuna's database, never MLflow's: sqlite:///, postgresql://, mysql+pymysql://, "
        "journal:PATH on a shared file system, or env:NAME, a variable that holds the URL with its password.",
    )
    study: Text = Field(None, description="Name of the study; an existing one is continued. Default: a new one.")
    workers: int = Field(1, ge=1, le=256, description="Processes on this machine that run trials.")
    forget: ForgetSpec = None
    hash_ids: HashIds = False
    prefix: str = Field("search", description="As in `unlearn`, or search: try both none and auto.")
    gold_uri: GoldUri = None
    register_: Literal["best", "none"] = Field("best", alias="register", description="What to register: best or none.")
    register_as: RegisterAs = None
    seed: Seed = Field(0, description="Seed of the sampler and of every trial.")


class Evaluate(HardwareOptions, ReadOptions, Command):
    """Measure a model version on forget, retain, validation and test set; registers nothing."""

    example = "mlflow-unlearn evaluate --model-uri models:/clf/2 --gold-uri models:/clf-gold/1"

    model_uri: str = Field(description="The version to measure.")
    original_uri: Text = Field(None, description="The version before unlearning; default: the recorded source.")
    gold_uri: GoldUri = None
    forget: Text = Field(None, description="Forget spec; default: the requests that the version carried out.")
    seed: Seed = Field(0, description="Seed of the bootstrap and of the attack's folds.")


class Audit(HardwareOptions, ReadOptions, Command):
    """Attack a version, calibrated by retrained models, with controls. Exit code 3: recognised, or not decided."""

    example = "mlflow-unlearn audit --model-uri models:/clf/4 --gold-uri models:/clf-gold/1,models:/clf-gold/2"

    model_uri: str = Field(description="The version to attack.")
    original_uri: Text = Field(None, description="The version before unlearning; default: the recorded source.")
    gold_uri: Text = Field(
        None,
        description="Models retrained without the forget set, separated by commas; more of them make the audit "
        "stronger.",
    )
    alike_uri: Text = Field(
        None,
        description="Versions made in the same way with other seeds, separated by commas; U-LiRA and KLoM need 16 with "
        "this one, and 16 golds.",
    )
    references: int = Field(
        0,
        ge=0,
        le=1024,
        multiple_of=2,
        description="Train this many models on random halves of the training set, reused for all requests; each sample "
        "is unseen by half of them.",
    )
    recipe: Literal["recorded", "fast"] = Field(
        "recorded", description="How references are trained: like the original, or with a third of its epochs."
    )
    relearn: bool = Field(
        False, description="Also measure how fast forgotten samples are relearned, compared with unseen ones."
    )
    cheat: bool = Field(
        False, description="Also make a known cheat, the original with a new last layer, which the audit must catch."
    )
    forget: Text = Field(None, description="Forget spec; default: the requests that the version carried out.")


class Compare(HardwareOptions, PublishOptions, Command):
    """Compare methods with each other and with retraining; resumes where it stopped. Exit code 3: none is ranked."""

    example = "mlflow-unlearn compare --model-uri models:/clf/1 --methods lotus,scrub,salun --seeds 3 --tuned 10"

    model_uri: str = Field(description="The version to unlearn: models:/NAME/VERSION, models:/NAME@ALIAS, …")
    methods: str = Field("all", description="Methods, separated by commas, or all; see `mlflow-unlearn methods`.")
    seeds: str = Field("3", description="Seeds: how many, or a list such as 0,5,7.")
    forget: Text = Field(
        None, description="Forget spec to use instead of the pending requests; the same set for all seeds."
    )
    hash_ids: HashIds = False
    params: Text = Field(
        None, description="Hyperparameters by method: scrub.alpha=0.5,lotus.epochs=5, JSON or a YAML file."
    )
    tuned: int = Field(
        0,
        ge=0,
        le=1000,
        description="Also tune each method with this many trials, which see neither the gold standard nor the "
        "test set.",
    )
    prefix: Prefix = "none"
    gold_uri: Text = Field(
        None, description="A model retrained without the forget set; default: retrained here, once per seed."
    )
    by: Literal["gap", "audit"] = Field(
        "gap",
        description="What ranks the methods: their distance to gold, or how well an audit recognises the forget set.",
    )
    register_: Literal["none", "best"] = Field("none", alias="register", description="What to register: none or best.")
    register_as: RegisterAs = None


class Review(Command):
    """Judge a version by its evidence and a policy; the verdict is recorded. Exit code 0: pass, 3: fail."""

    example = "mlflow-unlearn review --model-uri models:/clf/4 --policy policy.yaml"

    model_uri: str = Field(description="The unlearned version to judge: models:/NAME/VERSION.")
    policy: Text = Field(None, description="Policy, a YAML file; default: the one described in docs/governance.md.")
    key: PublicKey = None


class Promote(Command):
    """Move an alias to a version that has passed its review. Exit code 3: refused."""

    example = "mlflow-unlearn promote --model-uri models:/clf/4 --alias champion"

    model_uri: str = Field(description="The reviewed version: models:/NAME/VERSION.")
    alias: str = Field("champion", description="The alias to move.")
    policy: Text = Field(
        None, description="The policy that it must have been reviewed by; default: that of its review."
    )
    key: Text = Field(
        None, description="Public EC key (PEM file) of the required signer; default: any signer that the policy names."
    )
    approver: Remark = Field(
        None, description="Who approves; not needed on a server with users, which takes no other name."
    )
    override: Remark = Field(None, description="Reason to promote despite the verdict; it is recorded.")


class Verify(LoadOptions, Command):
    """Check a version against its evidence: files, tags, chain, aliases. Makes no run. Exit code 3: a difference."""

    example = "mlflow-unlearn verify --model-uri models:/clf/4 --key public.pem"
    makes_run = False

    model_uri: str = Field(description="The version to check: models:/NAME/VERSION.")
    recompute: bool = Field(False, description="Also measure again, with the data named in the evidence.")
    key: PublicKey = None
    data: Text = Field(None, description=f"{_SOURCES}. With --recompute true; default: the one in the evidence.")


class Exposure(Command):
    """List where forgotten data still exists: versions, aliases, endpoints, runs, models, caches. Makes no run."""

    example = "mlflow-unlearn exposure --model-uri models:/clf/3"
    makes_run = False

    model_uri: str = Field(description="A version with a forget request, or one that has fulfilled one.")


class Locate(LoadOptions, Command):
    """Find the versions of the whole registry that were trained on some samples. Makes no run."""

    example = "mlflow-unlearn locate --forget ids.csv"
    makes_run = False

    forget: str = Field(
        description="Samples to look for: a file of ids, group:COLUMN=VALUE, class:NAME or request:ID.",
    )
    data: Text = Field(
        None, description=f"{_SOURCES}: whose samples are meant; default: every source that a version records."
    )
    fail_on: Literal["nothing", "contains", "unknown"] = Field(
        "nothing",
        description="Exit with code 3 if a version contains them, or (unknown) also if that is unknown.",
    )


class Requests(Command):
    """List all forget requests by due date, show one case, or unlearn what is pending. Exit code 3: one failed."""

    example = 'mlflow-unlearn requests --fulfil true --unlearn-options \'{"until": "pass"}\''

    state: Literal["open", "overdue", "done", "all"] = Field(
        "open", description="Which cases to list: open (including overdue), overdue, done or all."
    )
    model: Text = Field(None, description="Only cases on registered models with this name, or a pattern such as clf*.")
    subject: Text = Field(
        None, description="Only cases with this text in their forget spec or requester, or with this id."
    )
    case: Text = Field(
        None, description="Show one case with its timeline: the id of the case, or of one of its requests."
    )
    fulfil: bool = Field(
        False,
        description="Run `unlearn` on every version with a pending request of these cases; continue after a failure.",
    )
    within: Annotated[Annotated[int, Field(ge=0, le=36500)] | None, _EMPTY_IS_NONE] = Field(
        None, description="With --fulfil true: only what is overdue or due within this many days; default: all."
    )
    unlearn_options: Text = Field(
        None, description='With --fulfil true: options of `unlearn`, JSON or a YAML file: {"method": "transpose"}.'
    )
    withdraw: Text = Field(
        None, description="Take back what is pending of a request, or of a case, by its id; recorded, not deleted."
    )
    reason: Remark = Field(None, description="With --withdraw: why, for the record.")
    output: Text = Field(
        None, description="With --format html: the file to write; default: inbox.html, or case-ID.html."
    )
    format: Literal["table", "json", "html"] = Field(  # type: ignore[assignment]
        "table",
        description="table: for people; json: one JSON document, and nothing else on standard output; html: a page.",
    )


class Manifest(LoadOptions, Command):
    """Record what a version of another tool was trained on, so that `locate` and requests know it."""

    example = "mlflow-unlearn manifest --model-uri models:/theirs/1 --data folder:/data/flowers --ids trained.csv"

    model_uri: str = Field(description="The version: models:/NAME/VERSION.")
    data: str = Field(description=f"{_SOURCES}: what it was trained on.")
    ids: Text = Field(
        None, description="File of the ids that it was trained on; default: the whole training split of the source."
    )


class Retire(Command):
    """Remove what still holds forgotten data: first a plan, then with --yes for good. Exit code 3: refused."""

    example = "mlflow-unlearn retire --model-uri models:/clf/3"

    model_uri: str = Field(description="The version to retire: models:/NAME/VERSION.")
    aliases: Text = Field(
        None,
        description="Aliases of it to remove, separated by commas, those of a copy as NAME@ALIAS; refuses if an alias "
        "isn't named.",
    )
    reason: Reason = None
    yes: bool = Field(False, description="Carry out the plan; without it the plan is only printed.")


class Dossier(Command):
    """Write everything about one case into one zip that checks itself offline. Exit code 3: it is incomplete."""

    example = "mlflow-unlearn dossier --request 1f0c9a7be2d4"

    request: Text = Field(None, description="Id of a request, or of a case: the dossier is of the whole case.")
    output: Text = Field(None, description="The zip to write; default: dossier-CASE.zip.")
    force: bool = Field(False, description="Replace an existing file.")
    attach: bool = Field(False, description="Also store the zip in the run that records the dossier.")
    sign_key: Text = Field(
        None, description="Private EC key (PEM file) to sign the manifest with; needs the extra [sign]."
    )
    verify: Text = Field(None, description="Instead, check this dossier (a zip or a folder) offline. Makes no run.")
    key: Text = Field(None, description="With --verify: public EC key (PEM file) that must have signed it.")
    digest: Text = Field(None, description="With --verify: SHA-256 of its manifest, as printed when it was made.")


class Listen(Command):
    """Answer webhooks of the registry with commands, by rules in a YAML file. Makes no run of its own."""

    example = "mlflow-unlearn listen --config listen.yaml"
    makes_run = False

    config: str = Field(description="YAML file with the rules; see docs/events.md.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8400, ge=0, le=65535, description="Port to listen on; 0: any free port.")
    status: bool = Field(
        False, description="Only print the queue: jobs that are waiting, running, done, refused or failed."
    )
    retry: Text = Field(
        None,
        description="Continue jobs at the step where they ended: their ids, or failed for all that failed.",
    )


class Methods(Command):
    """List the unlearning methods with their hyperparameters, those of plugins too. Makes no run."""

    example = "mlflow-unlearn methods"
    makes_run = False


class Policy(Command):
    """Print a policy with all its defaults, as YAML to edit and give as --policy. Makes no run."""

    example = "mlflow-unlearn policy show"
    makes_run = False

    action: Literal["show"] = Field("show", description="What to do with it.")
    policy: Text = Field(None, description="A YAML file; default: the policy of `review`.")


class NewMethod(Command):
    """Write the folder of a new method: code, conformance tests, and what makes it installable. Makes no run."""

    example = "mlflow-unlearn new-method my_idea"
    makes_run = False

    name: Annotated[str, AfterValidator(_method_name)] = Field(
        description="Name of the method: small letters, digits and _, such as my_idea."
    )
    path: str = Field(".", description="Folder in which the folder NAME is made.")


class Data(Command):
    """Show what a data source holds: counts by split and class, digests. Makes no run."""

    example = "mlflow-unlearn data --data digits"
    makes_run = False

    data: str = Field(description=f"{_SOURCES}.")
    ids: Text = Field(None, description="Write id, split and class of every sample to this CSV file.")


Unlearning = Unlearn | Tune | Compare
"""The commands that unlearn what a request or a forget spec names."""
Measuring = Evaluate | Audit
"""The commands that look at what has been unlearned."""

COMMANDS: dict[str, type[Command]] = {
    re.sub(r"(?<=[a-z])(?=[A-Z])", "-", command.__name__).lower(): command
    for command in (Train, Request, Unlearn, Tune, Evaluate, Audit, Compare, Review)
    + (Promote, Verify, Requests, Exposure, Locate, Manifest, Retire, Dossier, Listen, Methods, NewMethod, Policy, Data)
}


def options(command: type[Command]) -> dict[str, Any]:
    """The options of a command, name → pydantic's field: required ones first, then its own, then the shared ones."""
    own, fields = command.__annotations__, command.model_fields
    last = ("format", "debug")
    ranked = sorted(fields, key=lambda name: (name in last, not fields[name].is_required(), name not in own))
    return {fields[name].alias or name: fields[name] for name in ranked}


def command_of(command: Command) -> str:
    """The command with its options, ready to paste; without a storage's URL, which may hold a password."""
    given = as_arguments(command)
    pairs = zip(given[::2], given[1::2], strict=True)
    return command_line(
        type(command).__name__.lower(), *(part for pair in pairs for part in pair if pair[0] != "--storage")
    )


def as_arguments(command: Command) -> list[str]:
    """A command's options for a process that takes part in it: values that are the default, or not given, are left out.

    The storage's URL, which may hold a password, has to be in the process's environment, as `STORAGE_VARIABLE`.
    """
    given = command.model_dump(by_alias=True)
    if isinstance(command, Tune):
        given["storage"] = _VARIABLE + STORAGE_VARIABLE
    defaults = {name: field.default for name, field in options(type(command)).items()}
    return [
        part
        for name, default in defaults.items()
        if (value := given[name]) != default and value is not None
        for part in (f"--{name.replace('_', '-')}", str(value).lower() if isinstance(value, bool) else str(value))
    ]


GOLD_SEED = 1000
"""Added to the seeds of gold models, so that none shares its initial weights with the original."""
MOST_SEEDS = 1000


def parse_seeds(text: str) -> list[int]:
    """``"3"`` is 0, 1, 2; a list is itself.

    >>> parse_seeds("3"), parse_seeds("0, 5"), parse_seeds("[7]")
    ([0, 1, 2], [0, 5], [7])

    Raises:
        UnlearnError: no seed, a seed twice, or something that is not a seed.
    """
    listed = "," in text or text.strip().startswith("[")
    try:
        numbers = [int(part) for part in text.strip().strip("[]").split(",") if part.strip()]
    except ValueError:
        numbers = []
    count = len(numbers) if listed else sum(numbers)
    seeds = numbers if listed else list(range(min(count, MOST_SEEDS)))
    usable = all(0 <= seed < 2**32 - 3 * GOLD_SEED for seed in seeds)
    if not usable or not 1 <= count <= MOST_SEEDS or len(set(seeds)) < len(seeds):
        raise UnlearnError(
            f"{spelled('seeds', text)} is not usable: give a number (1 to {MOST_SEEDS}), or a list of different whole "
            "numbers ≥ 0 such as 0,5,7"
        )
    return seeds


def parse_params(text: str | None, where: str = "params", *, example: str = "alpha=8,epochs=5") -> dict[str, Any]:
    """Names and values from JSON, a YAML file, or as ``alpha=8,epochs=5``.

    Args:
        text: of the option.
        where: its name.
        example: of a value, for messages.

    Raises:
        UnlearnError: neither.
    """
    if text is None:
        return {}
    if "=" in text and not text.lstrip("\ufeff \t\r\n").startswith("{") and not os.path.exists(text):
        return _pairs(text, where, example)
    file = not text.lstrip("\ufeff \t\r\n").startswith("{")
    source = f"{spelled(where)} file {text!r}" if file else spelled(where)
    try:
        # YAML reads 1e-4 as a string; pydantic makes a number of it again.
        values = load_options(read_text(text) if file else text, yaml=file)
    except OSError as error:
        raise UnlearnError(
            f"{spelled(where, text)} is neither NAME=VALUE, a JSON object nor a YAML file ({error.strerror}): write "
            f"{example}, or JSON"
        ) from error
    except ValueError as error:
        raise UnlearnError(f"{source} cannot be parsed: {first_line(error)}") from error
    if not isinstance(values, dict):
        found = "nothing" if values is None else f"a {type(values).__name__}"
        raise UnlearnError(f"{source} holds {found}, not names with values such as alpha: 2")
    return values


def _pairs(text: str, where: str, example: str = "alpha=8,epochs=5") -> dict[str, Any]:
    """Of ``name=value`` separated by commas; ``method.name=value`` is inside of the method's own.

    >>> _pairs("alpha=8, lotus.lr=1e-4, lotus.epochs=5", "params")
    {'alpha': 8, 'lotus': {'lr': '1e-4', 'epochs': 5}}

    Raises:
        UnlearnError: a part is not such a pair, or names something twice.
    """
    values: dict[str, Any] = {}
    for part in text.split(","):
        path, equals, value = (each.strip() for each in part.partition("="))
        *outer, name = path.split(".")
        inside = values
        for each in outer:
            inside = inside.setdefault(each, {})
            if not isinstance(inside, dict):
                raise UnlearnError(f"{spelled(where, text)}: {each!r} is given a value and values inside of it")
        if not (equals and name) or name in inside:
            what = f"{name!r} is given twice" if name in inside else f"{part.strip()!r} is not NAME=VALUE"
            raise UnlearnError(f"{spelled(where, text)}: {what}: write {example}, or JSON")
        try:
            inside[name] = load_options(value, yaml=True)
        except ValueError as error:
            raise UnlearnError(f"{spelled(where, text)}: the value of {name!r} cannot be read ({error})") from error
    return values
