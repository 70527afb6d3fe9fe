"""Options of W&B runs, and the server they go to."""

import base64
import functools
import logging
import netrc
import os
import re
import secrets
import ssl
from collections.abc import Iterable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

from vae_exp.config.schema import Config, WandbKeys
from vae_exp.errors import UserError, printable
from vae_exp.training.run_dir import OUTPUTS, WandbRun

log = logging.getLogger(__name__)

INIT_SECONDS = 8  # with wandb_server.PROBE_SECONDS: a server that does not answer may cost 15 s in all
FINISH_SECONDS = 10  # of uploading at the end; what is not there by then stays in W&B's folder, to be synced
LONGEST_TAG = 64
UNKNOWN = WandbRun()
SHORT = {"model.z_dim": "z", "optimizer.lr": "lr", "seed": "s"}
IN_EVERY_NAME = ("model", "model.name", "dataset", "model.z_dim", "optimizer.lr", "seed")


def run_name(config: Config) -> str:
    """Return a name such as vanilla-mnist-z20-lr0.001-s0, or the user's; in a sweep with whatever else is swept."""
    model, dataset, lr = config["model"], config["dataset"], config["optimizer"]["lr"]
    chosen = config["wandb"]["name"] or os.environ.get("WANDB_NAME")
    name = chosen or f"{model['name']}-{dataset['name']}-z{model['z_dim']}-lr{lr:g}-s{config['seed']}"
    for swept in config["sweep"]["over"]:
        key, _, value = swept.partition("=")
        if chosen or key not in IN_EVERY_NAME:
            name = f"{name}-{key.rsplit('.', 1)[-1]}{value}"
    return str(name)


def of_run(
    config: Config, facts: dict[str, Any], name: str | None, wandb_id: str | None, known: WandbRun
) -> dict[str, Any]:
    """Return the options of wandb.init for a training run.

    wandb_id is the id of the run to resume, if there is one, and known is what summary.json has of that run.
    """
    keys = config["wandb"]
    return common(keys, known) | {
        "config": {**config, **facts},
        "id": os.environ.get("WANDB_RUN_ID") or wandb_id or new_id(_for_the_list(config, str(name))),
        "resume": "allow" if wandb_id else None,
        "name": name,
        "group": group(config, name, known),
        "job_type": os.environ.get("WANDB_JOB_TYPE") or "train",
        "tags": tags(config, known),
        "notes": text(keys["notes"]),
    }


def group(config: Mapping[str, Any], name: str | None, known: WandbRun) -> str | None:
    """Return the W&B group of a run and of its evaluations: the configured one, its sweep, or its own name.

    known is what summary.json has of the run: the environment may be another one by now.
    """
    asked = (config.get("wandb") or {}).get("group") or (config.get("sweep") or {}).get("name")
    return text(asked or known.group or os.environ.get("WANDB_RUN_GROUP") or name)


def tags(config: Mapping[str, Any], known: WandbRun) -> list[str]:
    """Return the W&B tags of a run and of its evaluations: its model, its dataset, the user's; known as in group."""
    own = (config.get("wandb") or {}).get("tags")
    if not own and isinstance(known.tags, list):
        return short([str(tag) for tag in known.tags])
    names = [(config.get(part) or {}).get("name") for part in ("model", "dataset")]
    return short([str(tag) for tag in (*names, *(own or _tags_of_environment())) if tag is not None])


def tags_of_sweep(keys: WandbKeys, known: Iterable[WandbRun]) -> list[str]:
    """Return all tags of a sweep's runs, or the user's tags if none are known."""
    of_runs = dict.fromkeys(tag for run in known if isinstance(run.tags, list) for tag in run.tags)
    return short([str(tag) for tag in of_runs or keys["tags"] or _tags_of_environment()])


def _tags_of_environment() -> list[str]:
    return [tag for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag.strip()]


def _for_the_list(config: Config, name: str) -> str:
    """Put what is swept before the name: `wandb leet` lists runs by the first few letters of their ids."""
    swept = [word.partition("=") for word in config["sweep"]["over"]]
    values = [SHORT.get(key, key.rsplit(".", 1)[-1]) + value for key, _, value in swept]
    return "-".join([*values, name])


def short(tags: list[str]) -> list[str]:
    """Return the tags that W&B accepts: with one that is too long it would refuse the run."""
    if long := [tag for tag in tags if len(tag) > LONGEST_TAG]:
        shown = ", ".join(printable(tag[:LONGEST_TAG]) + "..." for tag in long)
        log.warning("W&B: left out what is longer than the %d characters of a tag: %s", LONGEST_TAG, shown)
    return [tag for tag in tags if len(tag) <= LONGEST_TAG]


def common(keys: WandbKeys, known: WandbRun = UNKNOWN) -> dict[str, Any]:
    """Return the options of wandb.init that are the same for every run: of training, an evaluation, a sweep's summary.

    known is what summary.json has of the run that is written to, or that is evaluated.
    """
    import wandb

    # Absolute, because W&B's service keeps the working folder of its start.
    folder = Path(str(keys["dir"] or os.environ.get("WANDB_DIR") or OUTPUTS)).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "dir": folder,
        "project": str(keys["project"] or known.project or os.environ.get("WANDB_PROJECT") or "vae_exp"),
        "entity": keys["entity"] or known.entity,
        "reinit": "finish_previous",  # a run that is still open must not swallow this one's points
        "settings": wandb.Settings(
            silent=True, init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS, finish_timeout_raises=True
        ),
    }


def new_id(name: str) -> str:
    """Make an id that no other run has."""
    return f"{as_id(name)}-{secrets.token_hex(3)}"


def as_id(name: str) -> str:
    """Make a readable id of a name: `wandb leet` lists runs by their ids, and W&B refuses some characters in them."""
    return re.sub("[^A-Za-z0-9._-]", "-", name)[:80]


def text(value: Any) -> str | None:
    return None if value is None else str(value)


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


PROBE_SECONDS = 4
REFUSED_IN_IDS = ":;,#?/'"
Mode = Literal["online", "offline", "disabled"]


def api_key(mode: str, because: str = "wandb.mode=online", instead: str = "use wandb.mode=offline") -> str | None:
    """Return the W&B API key, an empty text for other credentials, or None if there are none.

    Raise UserError if wandb.mode=online has none; it says what to do instead of `wandb login`.
    """
    import wandb

    settings = wandb.setup(wandb.Settings(silent=True)).settings
    key = settings.api_key or _key_in_netrc(settings.base_url) or ("" if settings.identity_token_file else None)
    if mode == "online" and key is None:
        raise UserError(f"{because}: no W&B API key is configured. `wandb login`, or {instead}.")
    return key


def choose_mode(wanted: str) -> Mode:
    """Return the mode for wandb.init: online, offline or disabled.

    auto is disabled if WANDB_DISABLED says so, else WANDB_MODE's value, else online if an API key is configured, else
    offline. A server that does not answer, or refuses the key, means offline, and wrong settings mean disabled. Raise
    UserError as api_key and check_environment do.
    """
    mode = from_environment() if wanted == "auto" else wanted
    if mode == "disabled":
        return "disabled"
    check_environment(wanted)
    _mend_environment()
    import wandb

    try:
        key = api_key(mode) if mode in ("auto", "online") else None
        server = wandb.setup(wandb.Settings(silent=True)).settings.base_url
    except (ValueError, wandb.Error) as error:  # such as WANDB_BASE_URL without http://
        log.warning("W&B: its settings are wrong, so the run goes on without it: %s", error)
        return "disabled"
    if key is not None:
        trouble = _ask(server, key) if key else None
        if not trouble:
            return "online"
        log.warning("W&B: %s %s; the run goes on offline.", server, trouble)
    # Said to the whole process: else W&B's service talks to its server even for an offline run, and the
    # program's end waits for an answer.
    wandb.setup(wandb.Settings(silent=True, mode="offline"))
    return "offline"


def from_environment() -> str:
    """Return what wandb.mode=auto means, by W&B's own variables."""
    is_disabled = os.environ.get("WANDB_DISABLED", "").strip().lower() in ("true", "1", "yes", "y", "on", "t")
    return "disabled" if is_disabled else os.environ.get("WANDB_MODE", "auto")


def check_environment(wanted: str, several_runs: bool = False) -> None:
    """Raise UserError if W&B would refuse WANDB_RUN_ID, or if it is set for several runs; wanted is wandb.mode."""
    run_id = os.environ.get("WANDB_RUN_ID", "")
    if "disabled" in (wanted, from_environment() if wanted == "auto" else wanted):
        return
    if run_id != run_id.strip() or any(letter in REFUSED_IN_IDS or not letter.isprintable() for letter in run_id):
        raise UserError(
            f"WANDB_RUN_ID={run_id}: W&B takes no id with spaces around it or any of {' '.join(REFUSED_IN_IDS)} in it."
        )
    if run_id and several_runs:
        raise UserError(f"WANDB_RUN_ID={run_id}: is of one run, and each job of a sweep is a run of its own. Unset it.")


def _mend_environment() -> None:
    """Correct W&B's variables, which it reads itself: for a tag that is too long or an empty id it refuses them all."""
    if os.environ.get("WANDB_RUN_ID") == "":
        del os.environ["WANDB_RUN_ID"]
    if tags := os.environ.get("WANDB_TAGS"):
        os.environ["WANDB_TAGS"] = ",".join(short([tag for tag in tags.split(",") if tag.strip()]))
    if os.environ.get("WANDB_TAGS") == "":
        del os.environ["WANDB_TAGS"]


def _key_in_netrc(server: str) -> str | None:
    """Return the key that `wandb login` wrote, found without the network that wandb.login waits for."""
    try:
        entry = netrc.netrc(os.environ.get("NETRC")).hosts.get(urlparse(server).hostname or "")
    except (OSError, netrc.NetrcParseError):
        return None
    return entry[2] if entry else None


@functools.lru_cache  # a server that is away is waited for once, not once per job of a sweep
def _ask(server: str, key: str) -> str | None:
    """Ask the server who we are, as wandb would, and return what is wrong with it, or None."""
    login = base64.b64encode(f"api:{key}".encode()).decode()
    headers = {"Content-Type": "application/json", "Authorization": f"Basic {login}"}
    request = Request(f"{server.rstrip('/')}/graphql", b'{"query": "query { viewer { id } }"}', headers)
    try:
        urlopen(request, timeout=PROBE_SECONDS).close()
    except HTTPError as error:
        return f"refuses the API key ({error.code})" if error.code in (401, 403) else None
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        return (
            None if isinstance(reason, ssl.SSLError) else f"does not answer ({reason})"
        )  # wandb has its own certificates
    return None


def trouble() -> str | None:
    """Return what is wrong with the server just now, or None."""
    import wandb

    server = wandb.setup(wandb.Settings(silent=True)).settings.base_url
    found = _ask.__wrapped__(server, api_key("auto") or "")
    return f"{server} {found}" if found else None


def download(artifact: str) -> Path:
    """Download a W&B artifact such as ENTITY/PROJECT/NAME:best into outputs/wandb/artifacts, and return its folder.

    Raise UserError if there is no key, no such artifact, or no network.
    """
    api_key("online", f"checkpoint={artifact} is an artifact of W&B's", "give the path of a file or of a run's folder")
    import wandb

    folder = OUTPUTS / "wandb" / "artifacts" / artifact.replace("/", "_").replace(":", "_")
    try:
        return Path(wandb.Api(timeout=15).artifact(artifact).download(str(folder)))
    except Exception as error:  # whatever W&B raises: no such artifact, no right to it, no network
        raise UserError(f"checkpoint={artifact}: W&B cannot give it ({error}).") from error
