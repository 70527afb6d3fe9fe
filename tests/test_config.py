"""What the command line composes, and what it says of what it cannot."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import vae_exp.networks
from tests.conftest import READMES, compose, quick_run, refusal
from vae_exp.config import build
from vae_exp.config.checks import CALLS, CONF_DIR, check, combination_problems, flatten, options
from vae_exp.config.compose import IS_NEW, readable
from vae_exp.config.schema import DATASET_RULES, EVALUATE_RULES, GENERATE_RULES, OPTION_RULES, RULES
from vae_exp.distributions import Point
from vae_exp.errors import UserError

# beta, conditional, stochastic
MODELS = {
    "vanilla": (1, False, True),
    "beta": (4, False, True),
    "conditional": (1, True, True),
    "beta_conditional": (4, True, True),
    "autoencoder": (0, False, False),
}
GROUPS = ("model", *CALLS)
EVERY_OPTION = [f"{group}={option}" for group in GROUPS for option in options(group)]
FOR_LARGER_IMAGES = {"network=burgess", "network=locatello"}  # than the digits'; tests/test_networks.py has them
# What an option cannot have a default for.
NEEDS = {
    "dataset=image_folder": ["dataset.root=images"],
    "dataset=arrays": ["dataset.root=mine.npz"],
    "prior=by_label": ["model=conditional"],
}


def test_the_defaults_are_a_vanilla_vae_on_mnist():
    flat = flatten(check(compose()))
    promised = {
        "model.name": "vanilla",
        "model.z_dim": 20,
        "network.hidden_dims": [400],
        "likelihood._target_": "vae_exp.likelihoods.bernoulli",
        "dataset.name": "mnist",
        "dataset.val_size": 10_000,
        "optimizer._target_": "torch.optim.Adam",
        "optimizer.lr": 1e-3,
        "epochs": 15,
        "batch_size": 128,
        "wandb.mode": "auto",
    }
    assert promised.items() <= flat.items()


@pytest.mark.parametrize("name", options("model"))
def test_a_model_is_three_values(name):
    model = check(compose(f"model={name}"))["model"]
    assert (model["beta"], model["conditional"], model["stochastic"]) == MODELS[name]
    assert model["name"] == name


@pytest.mark.parametrize("name", options("model"))
def test_the_objective_uses_the_models_beta(name):
    assert check(compose(f"model={name}"))["objective"]["beta"] == MODELS[name][0]
    assert check(compose(f"model={name}", "model.beta=7"))["objective"]["beta"] == 7


def test_experiment_tutorial_is_the_tutorial():
    flat = flatten(check(compose("experiment=tutorial")))
    promised = {
        "dataset.val_size": 0,
        "model.z_dim": 20,
        "model.beta": 1,
        "network.hidden_dims": [400],
        "network.activation": "relu",
        "optimizer._target_": "torch.optim.Adam",
        "optimizer.lr": 1e-3,
        "batch_size": 128,
        "epochs": 15,
    }
    assert promised.items() <= flat.items()


def test_experiment_demo_needs_no_account_and_no_download():
    flat = flatten(check(compose("experiment=demo")))
    assert (flat["dataset.name"], flat["wandb.mode"]) == ("digits", "offline")


@pytest.mark.parametrize("experiment", options("experiment"))
def test_the_command_line_wins_over_an_experiment(experiment):
    changed = check(compose(f"experiment={experiment}", "model.z_dim=4", "optimizer.lr=0.5", "model=beta"))
    assert (changed["model"]["z_dim"], changed["optimizer"]["lr"], changed["model"]["beta"]) == (4, 0.5, 4)


@pytest.mark.parametrize("option", EVERY_OPTION)
def test_every_option_composes_and_every_key_of_it_has_a_rule(option):
    group = option.split("=")[0]
    dataset = () if group == "dataset" else ("dataset=digits",)  # as the runs below have it: composed once for both
    flat = flatten(check(compose(*dataset, option, *NEEDS.get(option, []))))
    keys = [key for key in flat if key.startswith(f"{group}.") and not key.endswith("_target_")]
    assert [key for key in keys if key not in RULES | OPTION_RULES | DATASET_RULES] == []


# The other datasets are read in test_data.py, test_images.py and test_own_data.py, from files made there.
LEFT_OUT = FOR_LARGER_IMAGES | {o for o in EVERY_OPTION if o.startswith("dataset") and o != "dataset=digits"}


@pytest.mark.parametrize("option", [o for o in EVERY_OPTION if o not in LEFT_OUT])
def test_every_option_trains(option):
    summary, _ = quick_run(option, *NEEDS.get(option, []), "max_steps=8")
    assert summary["state"] == "finished"
    assert summary["test/neg_elbo"] < 400


WRONG = [
    ("model.z_dim=0", "model.z_dim=0: it takes a whole number, 1 or more"),
    ("model.z_dim=2.5", "model.z_dim=2.5: it takes a whole number"),
    ("model.z_dim=abc", "model.z_dim=abc: it takes a whole number"),
    ("model.z_dim=true", "model.z_dim=true: it takes a whole number"),
    ("model.z_dim=null", "model.z_dim=null: it takes a whole number"),
    ("model.beta=-1", "model.beta=-1: it takes a number, 0 or more"),
    ("model.beta=nan", "model.beta=nan: it takes a number"),
    ("model.conditional=maybe", "model.conditional=maybe: it takes true or false"),
    ("optimizer.lr=0", "optimizer.lr=0: it takes a number above 0"),
    ("optimizer.lr=inf", "optimizer.lr=inf: it takes a number above 0"),
    ("epochs=-1", "epochs=-1: it takes a whole number, 0 or more"),
    ("batch_size=0", "batch_size=0: it takes a whole number, 1 or more"),
    ("seed=-1", "seed=-1: it takes a whole number from 0"),
    ("device=tpu", "device=tpu: it takes auto, cpu, cuda, cuda:N or mps"),
    ("device=mps", "device=mps: PyTorch"),
    ("network.hidden_dims=400", "network.hidden_dims=400: it takes a list of whole numbers"),
    ("network.hidden_dims=[0]", "network.hidden_dims=[0]: it takes a list of whole numbers"),
    ("network.activation=swish", "network.activation=swish: it takes one of relu"),
    ("likelihood=gaussian likelihood.sigma=0", "likelihood.sigma=0: it takes a number, 1e-18 or more"),
    ("likelihood=gaussian likelihood.sigma=best", "at most 1e+18, or one of learned, optimal, by_pixel"),
    ("likelihood=laplace likelihood.scale=optimal", "at most 1e+18, or learned or by_pixel."),
    ("network=conv network.channels=0", "network.channels=0: it takes a whole number, 1 or more"),
    ("objective.warmup=slow", "objective.warmup=slow: it takes one of linear, cosine, cyclical"),
    ("objective.warmup_fraction=2", "objective.warmup_fraction=2: it takes a number, 0 or more and at most 1"),
    ("objective.warmup_epochs=3 objective.warmup_steps=9", "objective.warmup_epochs=3 and objective.warmup_steps=9: a"),
    ("objective=capacity objective.warmup_steps=9", "objective.warmup_fraction=0.8: a warm-up has one length; set"),
    (
        "objective.warmup=cyclical",
        "objective.warmup=cyclical: say how long it lasts, such as objective.warmup_fraction=1",
    ),
    ("objective=iwae objective.samples=0", "objective.samples=0: it takes a whole number, 1 or more"),
    ("objective=iwae model=autoencoder", "objective=iwae: it weighs several draws of z, and an autoencoder's code"),
    ("objective=beta_tc model=autoencoder", "objective=beta_tc: it takes the KL apart, and an autoencoder has none"),
    ("objective=dip_vae batch_size=1", "objective=dip_vae and batch_size=1: it takes the covariance of the codes"),
    ("scores_every_epochs=2", "scores_every_epochs=2 and scores=[]: there is nothing to measure"),
    (
        "dataset=sprites dataset.factors=3",
        "dataset.factors=3: it takes values by factor names, such as {shape:[0],x:8}",
    ),
    ("objective=capacity model=autoencoder", "objective=capacity: it holds the KL at a value, and an autoencoder has"),
    ("objective=iwae likelihood=gaussian likelihood.sigma=optimal", "objective=iwae: the draws of z must be weighed"),
    ("objective=beta_tc objective.sampling=all", "objective.sampling=all: it takes stratified or weighted"),
    ("model.stochastic=1", "model.stochastic=1: it takes true or false"),
    ("dataset.val_size=-1", "dataset.val_size=-1: it takes a whole number, 0 or more, or a fraction such as 0.1"),
    ("dataset.train_size=1.5", "dataset.train_size=1.5: it takes a whole number, 1 or more, or a fraction"),
    ("dataset.labels=3", "dataset.labels=3: it takes a list of class numbers or names"),
    ("dataset.device_memory=2XB", "dataset.device_memory=2XB: it takes a size such as 500MB or 2GB"),
    ("dataset.binarize=larochelle", "dataset.binarize=larochelle: these files are MNIST's"),
    ("dataset=image_folder", "dataset=image_folder: it needs dataset.root=FOLDER"),
    (
        "dataset=image_folder dataset.root=x dataset.image_size=0",
        "dataset.image_size=0: it takes a whole number from 1",
    ),
    ("dataset=image_folder dataset.root=x dataset.channels=4", "dataset.channels=4: it takes 1 (grey) or 3 (colour)"),
    ("posterior.log_var_range=[2,-6]", "posterior.log_var_range=[2,-6]: it takes two rising numbers from -80 to 80"),
    ("posterior=iaf posterior.hidden_dims=[]", "posterior.hidden_dims=[]: it takes a list of 1 to 10 whole numbers"),
    ("prior=mixture prior.components=0", "prior.components=0: it takes a whole number from 1"),
    ("prior=vamp prior.init=random", "prior.init=random: it takes noise or data"),
    ("prior=flow model.z_dim=1", "prior=flow and model.z_dim=1: its layers move some latents by others"),
    ("prior=by_label", "prior=by_label and model.conditional=false: it is p(z | label)"),
    ("posterior=iaf model=autoencoder", "model.stochastic=false and posterior=iaf: an autoencoder's code is a point"),
    ("objective=free_bits prior=vamp", "objective=free_bits and prior=vamp: it counts the KL of each latent"),
    ("objective=beta_tc posterior=iaf", "objective=beta_tc and posterior=iaf: it takes the KL to N(0, I) apart"),
    ("+prior.foo=1", "prior: vae_exp.priors.standard takes no foo"),
    ("+posterior.context_dim=3", "posterior.context_dim is of posterior=iaf."),
    ("+network.n_outputs=3", "Its settings are hidden_dims, activation, init."),
    ("+dataset.foo=1", "dataset: vae_exp.datasets.digits takes no foo. Its settings are "),
    ("wandb.mode=sometimes", "wandb.mode=sometimes: it takes one of auto, online, offline, disabled"),
    ("wandb.tags=a", "wandb.tags=a: it takes a list such as [a,b], or null"),
    ("model.name=../out", "model.name=../out: it takes letters, digits, - and _"),
    ("optimizer.betas=[0.5]", "optimizer.betas=[0.5]: it takes two numbers from 0 to below 1, such as [0.9,0.999]"),
    ("+optimizer.foo=1", "optimizer: torch.optim.Adam takes no foo"),
    ("optimizer._target_=torch.optim.Nope", "optimizer._target_=torch.optim.Nope: there is no such"),
    ("+foo=1", "foo: no such key"),
    ("~model.z_dim", "model.z_dim: is missing"),
    ("~optimizer", "optimizer: choose one of adadelta, adafactor, adagrad, adam"),
    ("model.beta=${nowhere}", "model.beta: Interpolation key 'nowhere' not found"),
    ("model=conditional dataset.n_classes=0", "model.conditional=true: dataset=digits has no labels"),
    # A value is what an interpolation leads to, and is said once.
    ("batch_size=${optimizer.lr}", "batch_size=0.001: it takes a whole number, 1 or more"),
    ("epochs=${model.beta}", "epochs=1.0: it takes a whole number, 0 or more"),
    ("seed=${wandb.project}", "seed=null: it takes a whole number from 0"),
    ("device=${optimizer.lr}", "device=0.001: it takes auto"),
    ("optimizer.lr=${model.conditional}", "optimizer.lr=false: it takes a number above 0"),
    ("wandb.notes='../../esc' model.name=${wandb.notes}", "model.name=../../esc: it takes letters, digits, - and _"),
    ("seed=abc", "seed=abc: it takes a whole number"),
    # A group of values where one value belongs.
    ("dataset.val_size={a:1}", "dataset.val_size={a:1}: it takes a whole number"),
    ("objective.beta={a:1}", "objective.beta={a:1}: it takes a number"),
    ("epochs={a:1}", "epochs={a:1}: it takes a whole number"),
    ("dataset.labels=[]", "dataset.labels=[]: it takes a list of class numbers or names"),
    ("optimizer.betas=[0.9,1]", "optimizer.betas=[0.9,1]: it takes two numbers from 0 to below 1"),
    ("wandb.project=a/b", "wandb.project=a/b: it takes up to 128 characters without /"),
    ("seed=[0,1,2]", "A run for each value is vae-train -m seed=0,1,2"),
    ("scheduler._target_=torch.nn.Linear", "scheduler: torch.nn.Linear fails at epoch 0"),
    ("scheduler._target_=builtins.max", "scheduler"),
    (f"model.beta={'9' * 320}", "it takes a number, 0 or more"),
    ("~dataset.seed", "dataset.seed: is missing."),
    ("optimizer=sgd optimizer.lr=1e39", "optimizer.lr=1e+39: it takes a number above 0 and at most 1e+38"),
    ("scheduler=step scheduler.every_epochs=5e-324", "scheduler.every_epochs=5e-324: it takes a number, 1e-06 or more"),
    (f"model.name={'a' * 250}", "it takes letters, digits, - and _, up to 200 of them"),
    (f"wandb.dir={'x' * 300}", "x: it takes text on one line, a path (names up to 255 bytes, 3,900 in all), or null"),
    (f"resume={'x' * 5000}", "... (5,000 characters): it takes the path of a folder"),
    (
        "objective=free_bits objective.free_nats=1e308",
        "objective.free_nats=1e+308: it takes a number, 0 or more and at",
    ),
    ("likelihood=gaussian likelihood.sigma=5e-324", "likelihood.sigma=5e-324: it takes a number, 1e-18 or more"),
    ("likelihood=laplace likelihood.scale=1e300", "likelihood.scale=1e+300: it takes a number, 1e-18 or more"),
    # A source that is not the dataset's.
    ("dataset=emnist dataset.source=mnist", "dataset.split=balanced is of emnist alone. Use dataset=mnist."),
    ("dataset=mnist dataset.source=emnist", "dataset.source=emnist: it needs dataset.split, which dataset=emnist has"),
    # Text that would be a number without its quotes.
    ("seed=${oc.env:NOWHERE,7}", "This 7 is text: leave its quotes out, or decode it: ${oc.decode:${oc.env:NAME}}"),
    ('epochs="3"', "epochs=3: it takes a whole number, 0 or more. This 3 is text: leave its quotes out"),
    ('wandb.log_checkpoints="true"', "This true is text: leave its quotes out"),
    (
        "network=conv +network.hidden_dims=[3]",
        "network.hidden_dims is of network=gated_mlp|mlp. Where a preset sets it, ~network.",
    ),
]
WRONG_COMMANDS = [
    *WRONG[::30],
    ("model.zdim=3", "model.zdim: no such key. Did you mean model.z_dim"),
    ("z_dim=3", "z_dim: no such key. Did you mean model.z_dim"),
    ("lr=1", "lr: no such key. Did you mean optimizer.lr"),
    ("learning_rate=1", "learning_rate: no such key. Did you mean optimizer.lr"),
    ("image_size=64", "image_size: no such key. Did you mean dataset.image_size"),
    ("out=x", "out: no such key. Did you mean hydra.run.dir"),
    ("output_dir=x", "output_dir: no such key. Did you mean hydra.run.dir"),
    ("--epochs 3", "--epochs: no such flag. Keys have no dashes: epochs=3."),
    ("--learning-rate=3", "--learning-rate=3: no such flag. Did you mean optimizer.lr"),
    ("modle=beta", "modle: no such key. Did you mean model"),
    (
        "model=betta",
        "model=betta: there is no such model. Did you mean beta? There are autoencoder, beta, beta_conditional",
    ),
    ("dataset=minst", "dataset=minst: there is no such dataset. Did you mean mnist"),
    ("optimizer.momentum=0.9", "optimizer=rmsprop|sgd has"),
    ("model=null", "model=null: "),
    ("model.z_dim=[1", "model.z_dim=[1: it takes a whole number, 1 or more"),
    ("model.z_dim=2,3", "model.z_dim=2,3"),
    ("wandb.mode=online", "wandb.mode=online: no W&B API key is configured"),
    ("-m optimizer=adam,foo", "optimizer=foo: there is no such optimizer."),
    ("-m hydra.sweeper=null seed=0,1", "hydra.sweeper=null: a sweep needs one."),
    ("model=[a]", "model=a: there is no such model."),
    ("model=${oc.env:NOWHERE,null}", "model=${oc.env:NOWHERE,null}: a group takes the name of an option."),
    ("hydra.verbose=null", "hydra.verbose=null: Hydra does not start the run"),
    ("hydra.run.dir=/proc/nothing", "/proc/nothing/train.log: cannot be written"),
    ("-nan", "-nan: no such flag."),
    ("objective@model=0.1", "objective@model=0.1: a group takes the name of an option."),
    ("--dry-run", "--dry-run: no such flag."),
    ("runs", "runs: unknown argument; arguments are KEY=VALUE."),
    ("-m model.z_dim=0,3", "model.z_dim=0: it takes a whole number"),
    ("-m model.zdim=2,3", "model.zdim: no such key. Did you mean model.z_dim"),
    # Names that no file system has room for, and numbers that no 32-bit float has.
    (f"hydra.run.dir={'x' * 300}", "x: it takes the path of a folder (names up to 255 bytes, 3,900 in all)"),
    (f"hydra.run.dir={'x/' * 2500}", "... (5,000 characters): it takes the path of a folder"),
    (f"dataset=image_folder dataset.root={'é' * 128}", "é: it takes the path of a folder"),
    (f"--config-dir {'x' * 5000}", "... (5,000 characters): it takes the path of a folder"),
    ("resume=1", "resume=1: no last.pt there"),
    # What Hydra says in its own words, or in none.
    ("--shell-completion", "--shell-completion: Expecting one subcommand from ['install', 'uninstall', 'query']"),
    ("--resolve", "--resolve: The --resolve flag can only be used in conjunction with --cfg"),
    ('hydra.run=${oc.decode:"7"}', 'hydra.run=${oc.decode:"7"}: it has keys of its own'),
    ("-m seed=0,1 hydra/launcher=", "hydra/launcher=: there is no such launcher. There are basic, joblib"),
    ("hydra/job_logging=nope", "hydra/job_logging=nope: there is no such option of Hydra's."),
    ("hydra/job_logging=disabled", "hydra/job_logging=disabled: Hydra does not start the run"),
    ("model=", "model=: choose one of autoencoder, beta"),
    ("model=${nope}", "model=${nope}: a group takes the name of an option. Choose one of autoencoder, beta"),
    ("hydra.job_logging.root.level=${nope}", "Interpolation key 'nope' not found"),
    ("~devices", "~devices: every key has a value; leave devices out for its default."),
    ("-m seed=0,1 ~wandb.alert", "~wandb.alert: every key has a value"),
    (f"model.z_dim={'[' * 200}{']' * 200}", "nested deeper than 50 levels"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_a_wrong_value_is_named_with_what_its_key_takes(arguments, message):
    dataset = () if "dataset=" in arguments else ("dataset=digits",)
    assert refusal(*dataset, *arguments.split()).count(message) == 1


@pytest.mark.parametrize(("arguments", "message"), WRONG_COMMANDS)
def test_a_mistake_is_one_message_and_nothing_is_left_behind(vae_train, tmp_path, arguments, message):
    dataset = () if "dataset=" in arguments else ("dataset=digits",)
    code, printed = vae_train(*dataset, *arguments.split())
    assert code == 1
    assert printed.count(message) == 1
    assert "Traceback" not in printed
    assert len(printed.splitlines()) <= 5
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.slow
@pytest.mark.parametrize("typed", [("experiment=tutorial",), ("+network.hidden_dims=[3]", "~network.hidden_dims")])
def test_a_preset_leaves_the_network_to_the_command_line(vae_train, typed):
    code, said = vae_train("dataset=digits", *typed, "network=conv", "wandb.mode=disabled", "epochs=0", "device=cpu")
    assert code == 0, said


def test_where_the_user_stands_can_be_part_of_a_path(vae_train, tmp_path):
    code, said = vae_train("dataset=image_folder", "dataset.root=${hydra:runtime.cwd}/nowhere", "wandb.mode=disabled")
    assert (code, said.strip()) == (1, f"vae-train: dataset.root={tmp_path}/nowhere: there is no such folder.")


@pytest.mark.parametrize("value", ["/no/café", "/no/in café", "/no/(a)", "/no/ракета, 中国"])
def test_a_path_that_the_shell_hands_over_whole_needs_no_second_quotes(vae_train, value):
    code, said = vae_train("dataset=image_folder", f"dataset.root={value}")
    assert (code, said.strip()) == (1, f"vae-train: dataset.root={value}: there is no such folder.")


def test_commas_between_any_texts_separate_the_values_of_a_sweep_and_of_a_list():
    for typed in ("wandb.name={}", "dataset.labels=[{}]", "wandb.tags=[x],[{}]"):
        assert readable([typed.format("é,b (1)")], of_sweep=True) == [typed.format("'é','b (1)'")]
    assert readable(["wandb.name=choice(é,b)"]) == ["wandb.name='é',b"], "Hydra forgets quotes in a choice"
    assert readable(["wandb.notes=é, b"]) == ["wandb.notes='é, b'"], "one text, where it is no sweep"


@pytest.mark.parametrize("program", ["vae-train", "vae-evaluate", "vae-generate"])
def test_every_command_says_its_version_and_those_that_it_stands_on(vae_command, program):
    code, said = vae_command(program, "--version")
    assert code == 0
    assert re.fullmatch(r"vae_exp [\d.]+ \(torch [\w.+]+, hydra-core [\w.]+, wandb [\w.]+, Python [\w.+]+\)\n", said)
    assert vae_exp.__version__ in said


def test_the_help_lists_options_of_ones_own(vae_train, tmp_path):
    for option in ("network/mine", "optimizer/lion", "recipe/quick"):
        (tmp_path / "own" / option).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / f"{option}.yaml").touch()
    code, said = vae_train("--config-dir", "own", "--help")
    assert code == 0
    assert re.search(r"^network: .*mlp, .*mine$", said, re.MULTILINE)
    assert re.search(r"^optimizer: .*lion$", said, re.MULTILINE)
    assert re.search(r"^recipe: quick$", said, re.MULTILINE)
    assert all(name in said for name in vae_exp.networks.ACTIVATIONS)
    code, said = vae_train("dataset=digits", "--config-dir", "own", "--cfg", "job", "epochs=3")  # in any order
    assert (code, "\nepochs: 3\n" in f"\n{said}") == (0, True), said


def test_a_path_without_its_key_is_told_the_key(vae_command):
    code, said = vae_command("vae-evaluate", "outputs/run")
    assert code == 1
    assert said.startswith("vae-evaluate: outputs/run: write vae-evaluate checkpoint=outputs/run")


def test_several_mistakes_are_told_at_once(vae_train):
    _, said = vae_train("model.z_dim=0", "optimizer.lr=-1")
    assert "model.z_dim=0" in said
    assert "optimizer.lr=-1" in said


@pytest.mark.skipif(not IS_NEW, reason="Hydra 1.3 has no list of what it makes")
@pytest.mark.parametrize("flags", [(), ("-m",)])
def test_a_callback_that_hydra_1_4_does_not_let_in_is_named(vae_train, tmp_path, flags):
    code, said = vae_train(*flags, "dataset=digits", "+hydra.callbacks.one._target_=tests.hooks.Crash")
    assert (code, said.count("tests.hooks.Crash: Hydra 1.4 takes only callbacks of its own and of vae_exp")) == (1, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_bug_of_ours_keeps_its_traceback(vae_train, monkeypatch):
    monkeypatch.setattr("vae_exp.train.gradient_norm", None)
    with pytest.raises(TypeError, match="NoneType"):
        vae_train("experiment=demo", "wandb.mode=disabled")


def test_help_is_for_a_person(vae_train):
    code, said = vae_train("--help")
    assert code == 0
    for group in (*GROUPS, "experiment"):
        assert re.search(rf"^{group}: {', '.join(options(group))}$", said, re.MULTILINE)
    examples = re.findall(r"^ +vae-train (.*?)  ", said.split("Examples")[1].split("See also")[0], re.MULTILINE)
    assert len(examples) >= 4
    for example in examples:
        arguments = [word.split(",")[0] for word in example.split() if "=" in word]
        assert check(compose(*arguments))


def test_answers_come_without_torch_and_wandb():
    asked = [("--help",), ("--cfg", "job"), ("--info", "defaults"), ("model.zdim=3",)]
    script = (
        "import sys; from vae_exp.cli.train import main\n"
        f"for arguments in {asked!r}:\n"
        "    print('asked', *arguments)\n"
        "    sys.argv = ['vae-train', *arguments]\n"
        "    try: main()\n"
        "    except SystemExit as stop: print(stop.code)\n"
        "    assert not {'torch', 'wandb', 'numpy'} & set(sys.modules), arguments"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = re.split("^asked ", done.stdout, flags=re.MULTILINE)[1:]
    assert [len(answer.splitlines()) > 5 for answer in answers] == [True, True, True, False]
    assert "Did you mean" in answers[-1]


@pytest.mark.slow
def test_shell_completion_answers(vae_command, monkeypatch):
    environment = os.environ | {"COMP_LINE": "vae-train optimizer=adam", "COMP_POINT": "24"}
    asked = [sys.executable, "-m", "vae_exp.cli.train", "-sc", "query=bash"]
    done = subprocess.run(asked, capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["optimizer=adam", "optimizer=adamax", "optimizer=adamw"]
    for program, word, completed in (
        ("vae-train", "experiment=published/iwae_k5", "experiment=published/iwae_k5_short"),
        ("vae-train", "experiment=published/pythae", "experiment=published/pythae_vae_one_layer"),
        ("vae-evaluate", "impor", "importance_samples="),
        ("vae-generate", "dataset.ro", "dataset.root="),
    ):
        monkeypatch.setenv("COMP_LINE", f"{program} checkpoint=latest {word}")
        code, said = vae_command(program, "-sc", "query=bash")
        assert (code, said.split()[-1]) == (0, completed)


def test_the_readmes_and_the_help_name_only_keys_that_exist():
    text = "\n".join([*READMES.values(), (CONF_DIR / "hydra" / "help" / "vae_exp.yaml").read_text()])
    of_searches = {f"hydra.sweeper.{key}" for key in OmegaConf.load(CONF_DIR / "hydra" / "sweeper" / "optuna.yaml")}
    ours = {*flatten(check(compose())), *OPTION_RULES, *DATASET_RULES, *GROUPS, "experiment", "install"}
    known = {
        "vae-train": ours | of_searches,
        "vae-evaluate": EVALUATE_RULES.keys(),
        "vae-generate": GENERATE_RULES.keys(),
    }
    for program, keys in known.items():
        # The line that begins with a prompt shows a mistake.
        commands = [line for line in text.splitlines() if f"{program} " in line and not line.startswith("$ ")]
        named = {key for line in commands for key in re.findall(r"(?<![\w./-])([a-z_]+(?:\.[a-z_]+)*)=", line)}
        assert named - set(keys) == set()
        assert commands


PATHS = ["dataset=image_folder dataset.root=", "dataset=arrays dataset.root=", "dataset=mnist dataset.root="]
PATHS += ["hydra.run.dir=", "init_from=", "resume=", "--config-dir ", "-m sweep.resume="]


@pytest.mark.parametrize("key", PATHS)
def test_a_home_that_does_not_exist_is_one_message_for_every_path(vae_train, key):
    code, said = vae_train("dataset=digits", "wandb.mode=disabled", *f"{key}~nosuch/x".split(" "))
    assert code == 1
    assert "~nosuch/x: ~ is a home, and there is none of this name" in said
    assert not Path("~nosuch").exists()


def test_a_tilde_means_the_home_wherever_a_path_is_taken(vae_command, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    wandb = ("wandb.mode=offline", "wandb.dir=~/logged")
    code, said = vae_command("vae-train", "dataset=digits", "epochs=0", *wandb, "hydra.run.dir=~/run")
    assert code == 0, said
    code, said = vae_command("vae-generate", "checkpoint=~/run", "output=~/pictures", "n=4")
    assert code == 0, said
    assert {"run", "logged", "pictures"} <= {path.name for path in (tmp_path / "home").iterdir()}
    assert not Path("~").exists()


def test_beta_tc_refuses_a_prior_whose_density_it_would_not_see():
    """It takes the KL to N(0, I) apart, and the rest of the loss would be that to another prior."""
    flat = flatten(check(compose("objective=beta_tc")))
    assert not list(combination_problems(flat))
    (problem,) = combination_problems(flat | {"prior._target_": "spiky.spiky"})
    assert problem.startswith("objective=beta_tc and prior=your own: it takes the KL to N(0, I) apart. Use prior=stand")


def test_a_vamp_prior_refuses_a_posterior_that_is_no_gaussian():
    model = build.model(check(compose("dataset=digits", "prior=vamp")), (1, 8, 8), 0)
    model.posterior = Point
    with pytest.raises(UserError, match=r"prior=vamp: it needs a Gaussian q\(z\|x\), not Point"):
        model.prior_sample(2)
