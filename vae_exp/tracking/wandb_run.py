"""W&B runs: their mode and server, their options, and those beside training: an evaluation's, a sweep's summary."""

import base64
import contextlib
import functools
import hashlib
import logging
import netrc
import os
import re
import secrets
import shutil
import ssl
from collections.abc import Iterable, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal, cast
from urllib.error import HTTPError
from urllib.parse import unquote, urlparse
from urllib.request import Request, urlopen

from PIL.Image import Image

from vae_exp.config.checks import as_typed, made_name
from vae_exp.config.schema import Config, WandbKeys, is_number
from vae_exp.errors import Unwritable, UserError, first_line, printable
from vae_exp.files import expand, writing
from vae_exp.training.run_dir import OUTPUTS, WandbRun, read_summary

log = logging.getLogger(__name__)
Mode = Literal["online", "offline", "disabled"]
PROBE_SECONDS = 4
INIT_SECONDS = 8  # with PROBE_SECONDS: a server that does not answer may cost 15 s in all
FINISH_SECONDS = 10  # of uploading at the end; what is not there by then stays in W&B's folder, to be synced
TABLE_SECONDS = 600  # instead, where there is a table of thousands of images
MAX_ROWS = 10_000  # of a table: W&B shows no more
MAX_TAG = 64  # characters
REFUSED_IN_IDS = ":;,#?/'"
SWEEP_SUMMARY = "sweep-summary"  # the job type of the run that has a sweep's table and figures
SHORT = {"model.z_dim": "z", "optimizer.lr": "lr", "seed": "s"}
ARTIFACT = re.compile(r"(wandb:)?(?P<name>([\w.-]+/){1,2}[\w.-]+:[\w.-]+)")
IN_EVERY_NAME = (
    *("model", "model.name", "dataset", "model.z_dim", "optimizer.lr", "seed"),
    *("network", "posterior", "prior", "likelihood", "objective"),
)


def choose_mode(wanted: str) -> Mode:
    """Return the mode for wandb.init: online, offline or disabled. Raise UserError as api_key and check_environment do.

    auto is what W&B's variables say, else online if an API key is configured, else offline. A server that does not
    answer, or refuses the key, means offline, and wrong settings mean disabled.
    """
    mode = _mode_of(wanted)
    if mode == "disabled":
        return "disabled"
    check_environment(wanted)
    # W&B reads its variables itself: for a tag that is too long or an empty id it refuses the run.
    for name, value in {"RUN_ID": os.environ.get("WANDB_RUN_ID"), "TAGS": ",".join(_tags_of_environment())}.items():
        os.environ.pop(f"WANDB_{name}", None)
        if value:
            os.environ[f"WANDB_{name}"] = value
    import wandb

    try:
        server = _settings().base_url
        key = api_key(mode) if mode in ("auto", "online") else None
        problem = _probe(server, key) if key else None
    except (ValueError, wandb.Error) as error:  # such as WANDB_BASE_URL without http://
        log.warning("W&B: its settings are wrong, so the run goes on without it: %s", error)
        return "disabled"
    if problem:
        log.warning("W&B: %s; the run goes on offline.", problem)
    elif key is not None:
        return "online"
    # Said to the whole process: else W&B's service talks to its server even for an offline run, and the
    # program's end waits for an answer.
    wandb.setup(wandb.Settings(silent=True, mode="offline"))
    return "offline"


def _mode_of(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    is_disabled = os.environ.get("WANDB_DISABLED", "").strip().lower() in ("true", "1", "yes", "y", "on", "t")
    return "disabled" if is_disabled else os.environ.get("WANDB_MODE", "auto")


def check_environment(wanted: str, several_runs: bool = False) -> None:
    """Raise UserError if W&B would refuse WANDB_RUN_ID, or if it is set for several runs; wanted is wandb.mode."""
    run_id = os.environ.get("WANDB_RUN_ID", "")
    if _mode_of(wanted) == "disabled":
        return
    if run_id != run_id.strip() or any(letter in REFUSED_IN_IDS or not letter.isprintable() for letter in run_id):
        refused = " ".join(REFUSED_IN_IDS)
        raise UserError(f"WANDB_RUN_ID={run_id}: W&B takes no id with spaces around it or any of {refused} in it.")
    if run_id and several_runs:
        raise UserError(f"WANDB_RUN_ID={run_id}: is of one run, and each job of a sweep is a run of its own. Unset it.")


def api_key(mode: str, because: str = "wandb.mode=online", instead: str = "use wandb.mode=offline") -> str | None:
    """Return the W&B API key, an empty text for other credentials, or None. Raise UserError if online has none."""
    settings, entry = _settings(), None
    with contextlib.suppress(OSError, netrc.NetrcParseError):  # wandb.login waits for the network
        entry = netrc.netrc(os.environ.get("NETRC")).hosts.get(urlparse(settings.base_url).hostname or "")
    key = settings.api_key or (entry and entry[2]) or ("" if settings.identity_token_file else None)
    if mode == "online" and key is None:
        raise UserError(f"{because}: no W&B API key is configured. `wandb login`, or {instead}.")
    return key


def _settings() -> Any:
    import wandb

    return wandb.setup(wandb.Settings(silent=True)).settings


def server_problem() -> str | None:
    """Return what is wrong with the server just now, or None."""
    return _probe.__wrapped__(_settings().base_url, api_key("auto") or "")


@functools.lru_cache  # a server that is away is waited for once, not once per job of a sweep
def _probe(server: str, key: str) -> str | None:
    """Ask the server who we are, as wandb would, and return what is wrong with it, or None."""
    login = f"Basic {base64.b64encode(f'api:{key}'.encode()).decode()}"
    headers = {"Content-Type": "application/json", "Authorization": login}
    request = Request(f"{server.rstrip('/')}/graphql", b'{"query": "query { viewer { id } }"}', headers)
    try:
        urlopen(request, timeout=PROBE_SECONDS).close()
    except HTTPError as error:
        return f"{server} refuses the API key ({error.code})" if error.code in (401, 403) else None
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        if not isinstance(reason, ssl.SSLError):  # wandb has its own certificates
            return f"{server} does not answer ({reason})"
    return None


def run_name(config: Config) -> str:
    """Return a name such as vanilla-mnist-z20-lr0.001-s0, or the user's; in a sweep with whatever else is swept."""
    chosen = config["wandb"]["name"] or os.environ.get("WANDB_NAME")
    name = str(chosen or f"{made_name(config)}-lr{config['optimizer']['lr']:g}-s{config['seed']}")
    for swept in config["sweep"]["over"]:
        key, _, value = swept.partition("=")
        added = f"-{key.rsplit('.', 1)[-1]}{value}"
        if chosen or (key not in IN_EVERY_NAME and f"{added}-" not in name):
            name += added
    return name


def training_options(
    config: Config, info: dict[str, Any], name: str, wandb_id: str | None, known: WandbRun
) -> dict[str, Any]:
    """Return the options of wandb.init for a training run; wandb_id and known are of the run to resume."""
    # `wandb leet` lists runs by the first few letters of their ids: what is swept comes first.
    swept = [word.partition("=") for word in config["sweep"]["over"]]
    values = [SHORT.get(key, key.rsplit(".", 1)[-1]) + value for key, _, value in swept]
    options = {
        "config": {**config, **info},
        "id": os.environ.get("WANDB_RUN_ID") or wandb_id or new_id("-".join([*values, name])),
        "resume": "allow" if wandb_id else None,
        "name": name,
        "job_type": os.environ.get("WANDB_JOB_TYPE") or "train",
        "notes": config["wandb"]["notes"],
    }
    return _options(config["wandb"], known) | _labels(config, name, known) | options


# Its requirements.txt takes W&B 70 ms, most of its start; the runs of one process have the same packages.
packages_are_listed = False


def _options(keys: WandbKeys, known: WandbRun, finish_seconds: int = FINISH_SECONDS) -> dict[str, Any]:
    """Return the options of wandb.init that all runs have: known is the run that is resumed, or evaluated."""
    import wandb

    # Absolute, because W&B's service keeps the working folder of its start.
    folder = expand(keys["dir"] or os.environ.get("WANDB_DIR") or OUTPUTS).resolve()
    with writing(folder, "wandb.dir"):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):  # W&B would write to the temporary folder without a word
        raise Unwritable(f"wandb.dir={folder}: cannot be written")
    packages: dict[str, Any] = {"x_save_requirements": False} if packages_are_listed else {}
    seconds: dict[str, Any] = {"init_timeout": INIT_SECONDS, "finish_timeout": finish_seconds}
    return {
        "dir": folder,
        "project": str(keys["project"] or known.project or os.environ.get("WANDB_PROJECT") or "vae_exp"),
        "entity": keys["entity"] or known.entity,
        "reinit": "finish_previous",  # a run that is still open must not swallow this one's points
        "settings": wandb.Settings(silent=True, finish_timeout_raises=True, **seconds, **packages),
    }


def _labels(config: Mapping[str, Any], name: str, known: WandbRun) -> dict[str, Any]:
    """Return the W&B group and tags of a run and of its evaluations; known is what summary.json has of the run."""
    keys, sweep = config.get("wandb") or {}, config.get("sweep") or {}
    group = keys.get("group") or sweep.get("name") or known.group or os.environ.get("WANDB_RUN_GROUP") or name
    names = [(config.get(part) or {}).get("name") for part in ("model", "dataset")]
    # What its environment said, which may be another one by now, is known.
    given: list[Any] = [*names, *(keys.get("tags") or _tags_of_environment())]
    tags = given if keys.get("tags") or known.tags is None else known.tags
    return {"group": str(group), "tags": _accepted(tags)}


def _tags_of_environment() -> list[str]:
    return _accepted(tag for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag.strip())


def _accepted(tags: Iterable[Any]) -> list[str]:
    """Return the tags that W&B accepts: with one that is too long it would refuse the run."""
    texts = [str(tag) for tag in tags if tag is not None]
    if long := [printable(tag[:MAX_TAG]) + "..." for tag in texts if len(tag) > MAX_TAG]:
        log.warning("W&B: left out what is longer than the %d characters of a tag: %s", MAX_TAG, ", ".join(long))
    return [tag for tag in texts if len(tag) <= MAX_TAG]


def new_id(name: str) -> str:
    """Make an id that no other run has."""
    return f"{as_id(name)}-{secrets.token_hex(3)}"


def as_id(name: str) -> str:
    """Make a readable id of a name: `wandb leet` lists runs by their ids, and W&B refuses some characters in them."""
    return re.sub("[^A-Za-z0-9._-]", "-", name)[:80]


def record_evaluation(
    wandb_mode: str,
    run_dir: Path,
    config: Config,
    values: dict[str, Any],
    pictures: dict[str, Path],
    kind: str = "evaluate",
    tables: Mapping[str, Mapping[str, list[Any]]] | None = None,
) -> str | None:
    """Add numbers, pictures and tables, columns by name, to a run's W&B run, or to one in its group.

    Return in words where, or None. A further one of the same kind takes the place of one that is not yet uploaded.
    """
    summary = read_summary(run_dir)
    # A checkpoint that was taken out of its run's folder has no summary.
    if summary is None or summary.name is None or _mode_of(wandb_mode) == "disabled":
        return None
    mode = choose_mode(summary.wandb.mode if wandb_mode == "auto" else wandb_mode)  # auto: as the run itself
    if mode == "disabled":
        return None
    import wandb

    keys = cast("WandbKeys", dict.fromkeys(WandbKeys.__annotations__) | config.get("wandb", {}))
    reopened: dict[str, Any] = {"id": summary.wandb.id, "resume": "must"}
    unique = hashlib.sha256(os.fsencode(summary.wandb.id or run_dir.resolve())).hexdigest()[:6]
    beside: dict[str, Any] = {
        "id": f"{as_id(f'{kind}-{summary.name}')}-{unique}",  # of every evaluation of the run, so that W&B joins them
        "resume": "allow",
        "name": f"{kind} {summary.name}",
        "job_type": kind.split()[0],
        "config": config,
    } | _labels(config, summary.name, summary.wandb)
    can_reopen = mode == "online" and summary.wandb.id and summary.wandb.url
    for options in [reopened, beside] if can_reopen else [beside]:
        try:
            seconds = TABLE_SECONDS if tables else FINISH_SECONDS
            with wandb.init(mode=mode, **_options(keys, summary.wandb, seconds), **options) as run:
                run.summary.update(values | {name: _table(columns) for name, columns in (tables or {}).items()})
                if pictures:
                    run.log({name: wandb.Image(str(path)) for name, path in pictures.items()})
        except Exception as error:  # whatever is wrong with W&B, it must not cost the evaluation
            log.warning("W&B: the evaluation could not be logged (%s).", first_line(error))
            continue
        folder = Path(run.dir).parent
        if run.offline:  # what previous evaluations of the run logged, this one did too
            pattern = re.compile(rf"offline-run-\d+_\d+-{re.escape(beside['id'])}(-\d+)?")  # -1 for two of one second
            for path in folder.parent.iterdir():
                if pattern.fullmatch(path.name) and path.name != folder.name:
                    shutil.rmtree(path, ignore_errors=True)
        name = f"run {run.id}" if options is reopened else f"{run.name!r} in group {run.group}"
        return f"{name}, {os.path.relpath(folder) if run.offline else run.url}"
    return None


def _table(columns: Mapping[str, list[Any]]) -> Any:
    """Return a W&B table of columns of numbers, texts or Pillow's images."""
    import wandb

    cells = [[wandb.Image(value) if isinstance(value, Image) else value for value in c] for c in columns.values()]
    return wandb.Table(columns=[*columns], data=[*map(list, zip(*cells, strict=True))])


def publish_sweep(
    name: str,
    keys: WandbKeys,
    folders: list[Path],
    columns: list[str],
    rows: list[list[Any]],
    figures: list[Path],
    results: dict[str, Any],
) -> None:
    """Log the table and figures of a sweep as one W&B run, sweep-summary, in the sweep's group, with its runs' tags."""
    mode = choose_mode(keys["mode"])
    if mode == "disabled":
        return
    import wandb

    summaries = [summary for folder in folders if (summary := read_summary(folder)) is not None]
    tags = list(dict.fromkeys(tag for summary in summaries for tag in summary.wandb.tags or ()))
    options: dict[str, Any] = {
        "id": new_id(f"{SWEEP_SUMMARY}-{name}"),
        "name": f"{SWEEP_SUMMARY} {name}",
        "group": keys["group"] or name,
        "tags": _accepted(tags or keys["tags"] or _tags_of_environment()),
        "job_type": SWEEP_SUMMARY,
    }
    table = wandb.Table(columns=[*columns], data=[*zip(*map(_one_type, zip(*rows, strict=True)), strict=True)])
    try:
        with wandb.init(mode=mode, **_options(keys, WandbRun()), **options) as run:
            run.log({f"sweep/{figure.stem}": wandb.Image(str(figure)) for figure in figures})
            run.summary.update({"sweep/table": table} | results)  # as a row of history it has curves of its sizes
            if keys["alert"]:
                run.alert(f"sweep {name} ended", f"{results['done']} of {results['jobs']} jobs finished")
    except Exception as error:  # whatever is wrong with W&B, it must not cost the sweep
        log.warning("W&B: the sweep's summary could not be logged (%s).", first_line(error))


def _one_type(column: Sequence[Any]) -> list[Any]:
    """Return a column as W&B's tables take it: numbers, texts or booleans, else all of it as it would be typed."""
    kinds = {float if is_number(value) else type(value) for value in column if value is not None}
    is_plain = len(kinds) < 2 and kinds <= {float, str, bool}
    return [value if is_plain or value is None else as_typed(value) for value in column]


def artifact_of(path: Any) -> str | None:
    """Return the name of the W&B artifact that a path such as wandb:ENTITY/PROJECT/NAME:best means, or None."""
    match = ARTIFACT.fullmatch(str(path))
    return match["name"] if match and not expand(str(path)).exists() else None


def project_of(folders: Iterable[Path]) -> str | None:
    """Return ENTITY/PROJECT of the runs in these folders if they were logged online and all to the same, else None."""
    projects = set()
    for folder in folders:
        summary = read_summary(folder)
        if summary is not None and summary.wandb.url:
            words = [unquote(word) for word in urlparse(summary.wandb.url).path.strip("/").split("/")]
            projects.add("/".join(words[:2]) if len(words) == 4 and words[2] == "runs" else None)
    return projects.pop() if len(projects) == 1 else None


def download(artifact: str) -> Path:
    """Return the folder to which a W&B artifact such as ENTITY/PROJECT/NAME:best is downloaded. Raises UserError."""
    api_key("online", f"checkpoint={artifact} is an artifact of W&B's", "give the path of a file or of a run's folder")
    import wandb

    folder = OUTPUTS / "wandb" / "artifacts" / artifact.replace("/", "_").replace(":", "_")
    try:
        return Path(wandb.Api(timeout=15).artifact(artifact).download(str(folder)))
    except Exception as error:  # whatever W&B raises: no such artifact, no right to it, no network
        raise UserError(f"checkpoint={artifact}: W&B cannot give it ({error}).") from error
