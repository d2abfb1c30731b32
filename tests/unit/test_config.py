"""The configuration: strict, and every mistake with file, line and key."""

from pathlib import Path

import pytest

from nodeagent.config import values
from nodeagent.config.compile import hook_settings
from nodeagent.config.load import flatten, load
from nodeagent.config.model import Config
from nodeagent.config.site_checks import SiteCheck
from nodeagent.errors import ConfigError
from nodeagent.state.hook_conf import Gres, HookConf, Source, decode_hook_conf, state_dir_of


@pytest.fixture
def place(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    (tmp_path / "conf.d").mkdir(mode=0o755)
    return tmp_path


def problems(place: Path, text: str, extra: str = "") -> list[str]:
    (place / "config.yaml").write_text(text)
    if extra:
        (place / "conf.d" / "50-site.yaml").write_text(extra)
    with pytest.raises(ConfigError) as caught:
        load(place / "config.yaml")
    return list(caught.value.problems)


def test_an_empty_file_is_all_defaults(place: Path) -> None:
    (place / "config.yaml").write_text("")
    assert load(place / "config.yaml").config == Config()


def test_a_file_that_was_named_and_is_missing_is_an_error(place: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load(place / "config.yaml")


def test_later_files_override_key_by_key(place: Path) -> None:
    (place / "config.yaml").write_text("interval: 10s\nhooks: {wait_for_units: 5s, max_reruns: 2}\n")
    (place / "conf.d" / "10-a.yaml").write_text("hooks:\n  wait_for_units: 1m\n")
    (place / "conf.d" / "20-b.yaml").write_text("interval: 20\n")
    (place / "conf.d" / "ignored.conf").write_text("what: ever\n")
    loaded = load(place / "config.yaml")
    assert loaded.config.hooks.wait_for_units == 60 and loaded.config.hooks.max_reruns == 2
    assert loaded.config.interval == 20
    assert [path.name for path, _, _ in loaded.sources] == ["config.yaml", "10-a.yaml", "20-b.yaml"]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("intervall: 3\n", 1, "intervall: unknown key; did you mean interval?"),
        ("\nhooks:\n  wait: 1\n", 3, "hooks.wait: unknown key"),
        ("interval: -5\n", 1, "interval: wants a duration"),
        ("interval: 0\n", 1, "interval: wants a duration above 0"),
        ("interval: ten\n", 1, "interval: wants a duration"),
        ("interval: 5 parsecs\n", 1, "unknown unit 'parsecs'"),
        ("interval: [1]\n", 1, "interval: wants a duration"),
        ("interval: .inf\n", 1, "interval: wants a duration"),
        ("scheduler: slurm\n", 1, "scheduler: wants a mapping"),
        ("scheduler: {kind: pbs}\n", 1, "wants one of slurm, sge, local"),
        ("- a\n", 1, "the file: wants a mapping"),
        ("interval: 1\ninterval: 2\n", 2, "interval: is given twice"),
        ("a: [\n", 2, "not YAML"),
        ("interval: !!python/object:os.system x\n", 1, "interval:"),
        ("data_dir: relative\n", 1, "data_dir: wants an absolute path"),
        ("data_dir: /a/../b\n", 1, "wants an absolute path without"),
        ("drivers: {path: /mydriver}\n", 1, "drivers.path: wants a path with {version}"),
        ('drivers: {bin: "/a,b"}\n', 1, "drivers.bin: wants a path without"),
        ("limits: {max_drained: 200%}\n", 1, "at most 100%"),
        ("limits: {max_drained: -1}\n", 1, "limits.max_drained: wants"),
        ("health: {xid_actions: {79: explode}}\n", 1, "wants one of none, restart_application"),
        ("health: {strikes: {gpu-lost: 0}}\n", 1, "health.strikes: wants a whole number, 1 or more"),
        (
            "health: {memory_errors: {retired_pages: 0}}\n",
            1,
            "memory_errors.retired_pages: wants a whole number",
        ),
        ("health: {memory_errors: {corrected_per_hour: many}}\n", 1, "corrected_per_hour: wants a number"),
        ("health: {memory_errors: {corrected_total: -1}}\n", 1, "corrected_total: wants a whole number"),
        ("health: {sustained: {share: 60}}\n", 1, "health.sustained.share: wants a share, above 0 and at most 1"),
        ("health: {sustained: {share: 0}}\n", 1, "health.sustained.share: wants a share"),
        ("health: {sustained: {window: 0}}\n", 1, "health.sustained.window: wants a duration above 0"),
        ("health: {temperature: {margin: -5}}\n", 1, "health.temperature.margin: wants a number"),
        ("health: {pcie: {width: x16}}\n", 1, "health.pcie.width: wants a whole number"),
        ("health: {pcie: {replays_per_minute: -1}}\n", 1, "health.pcie.replays_per_minute: wants a number"),
        ("health: {nvlink: {links: all}}\n", 1, "health.nvlink.links: wants a whole number"),
        ("health: {stuck: {clock: 2}}\n", 1, "health.stuck.clock: wants a share"),
        ("health: {stuck: {held_memory: 1GB}}\n", 1, "health.stuck.held_memory: wants a size"),
        ("health: {expect: {persistence: 1}}\n", 1, "health.expect.persistence: wants one of any, on, off"),
        ("health: {expect: {drivers: [550.54]}}\n", 1, "health.expect.drivers: wants a text of one line"),
        ("health: {expect: {gpus: S1}}\n", 1, "health.expect.gpus: wants a list of texts"),
        ("health: {strikes: {xid: {count: 3}}}\n", 1, "health.strikes: wants a number of readings in a row, or {count"),
        ("health: {strikes: {xid: {count: 0, within: 1m}}}\n", 1, "health.strikes: wants a whole number, 1 or more"),
        ("health: {strikes: {xid: {count: 9999, within: 1m}}}\n", 1, "health.strikes: wants a count of at most 1000"),
        ("health: {strikes: {xid: {count: 2, within: 0}}}\n", 1, "health.strikes: wants a duration above 0"),
        ("health: {dwell: 30s}\n", 1, "health.dwell: wants a mapping"),
        ("health: {recover_after: {xid: soon}}\n", 1, "health.recover_after: wants a duration"),
        ("health: {settle: -1}\n", 1, "health.settle: wants a duration"),
        ("checks: [nhc]\n", 1, "checks: wants a mapping of names to checks"),
        ("checks: {a b: {command: [/bin/true]}}\n", 1, "checks: wants a name"),
        ("checks: {nhc: /usr/sbin/nhc}\n", 1, "checks: nhc: wants a mapping with command"),
        ("checks: {nhc: {timeout: 1s}}\n", 1, "checks: nhc: wants a command"),
        ("checks: {nhc: {command: /usr/sbin/nhc -q}}\n", 1, "checks: nhc: command: wants a list such as"),
        ("checks: {nhc: {command: [nhc]}}\n", 1, "checks: nhc: command: wants an absolute path"),
        ("checks: {nhc: {command: [/bin/a], time_out: 1}}\n", 1, "checks: nhc: time_out: unknown key"),
        ("checks: {nhc: {command: [/bin/a], timeout: 0}}\n", 1, "checks: nhc: timeout: wants a duration above 0"),
        ("checks: {nhc: {command: [/bin/a], severity: fatal}}\n", 1, "checks: nhc: severity: wants one of info"),
        ("checks: {nhc: {command: [/bin/a], user: 'a b'}}\n", 1, "checks: nhc: user: wants a name"),
        ("isolation: cgroup\n", 1, "isolation: wants one of auto, none, cgroup-v1, cgroup-v2, device-files"),
        ("cleanup: {leftover_memory: 1GB}\n", 1, "cleanup.leftover_memory: wants a size such as 512MiB"),
        ("cleanup: {leftover_memory: -1}\n", 1, "cleanup.leftover_memory: wants a size"),
        ("cleanup: {patience: 0}\n", 1, "cleanup.patience: wants a duration above 0"),
        ("cleanup: {compute_mode: shared}\n", 1, "cleanup.compute_mode: wants one of keep, default"),
        ("cleanup: {persistence: 1}\n", 1, "cleanup.persistence: wants one of keep, on, off"),
        ("cleanup: {power_limit: 300W}\n", 1, "cleanup.power_limit: wants keep, default, or watts"),
        ("cleanup: {power_limit: true}\n", 1, "cleanup.power_limit: wants keep, default, or watts"),
        ("cleanup: {application_clocks: 1980}\n", 1, "cleanup.application_clocks: wants keep, default, or MEMORY"),
        ("history: {max_age: 0}\n", 1, "history.max_age: wants a duration above 0"),
        ("history: {max_age: -1d}\n", 1, "history.max_age: wants a duration"),
        ("history: {max_size: 1MiB}\n", 1, "history.max_size: wants a size of at least 4MiB"),
        ("history: {max_size: 64MB}\n", 1, "history.max_size: wants a size such as"),
        ("policy: {dry_run: 1}\n", 1, "policy.dry_run: wants true or false"),
        ("sharing: {slots: 0}\n", 1, "sharing.slots: wants a whole number, 1 or more"),
        ("sharing: {slots: 1000}\n", 1, "sharing.slots: wants a number of jobs that share a GPU, at most 256"),
        ("sharing: {models: {'[AH]100': 2}}\n", 1, "sharing.models: wants a model"),
        ("sharing: {models: {A100: none}}\n", 1, "sharing.models: wants a whole number"),
        ("sharing: {mps: {threads: 50}}\n", 1, "sharing.mps.threads: wants one of share, all"),
        ("sharing: {mps: {pipe_directory: mps}}\n", 1, "sharing.mps.pipe_directory: wants an absolute path"),
        ("scheduler: {sge: {model_complex: a b}}\n", 1, "scheduler.sge.model_complex: wants a name"),
        ("listen: 99999999\n", 1, "listen: wants"),
        ("listen: ':70000'\n", 1, "listen: wants an address"),
        ("state_dir: /run/x/\n", 1, "state_dir: wants to stand on a line of its own"),
        ("{state_dir: /run/x}\n", 1, "state_dir: wants to stand on a line of its own"),
    ],
)
def test_each_mistake_names_file_line_and_key(place: Path, text: str, line: int, words: str) -> None:
    [problem] = problems(place, text)
    assert problem.startswith(f"{place}/config.yaml:{line}: ")
    assert words in problem and "\n" not in problem


def test_all_mistakes_are_told_at_once(place: Path) -> None:
    found = problems(place, "interval: -1\nlisten: x\n", extra="nonsense: 1\n")
    assert len(found) == 3 and "50-site.yaml:1: nonsense" in found[2]


def test_the_state_directory_is_only_where_hooks_look_for_it(place: Path) -> None:
    [problem] = problems(place, "", extra="state_dir: /run/x\n")
    assert "50-site.yaml:1: state_dir: belongs in config.yaml" in problem


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("state_dir: /run/x\n", "/run/x"),
        ("a: 1\nstate_dir:   '/run/x y' # why\n", "/run/x y"),
        ('state_dir: "/run/x"\n', "/run/x"),
        ("#state_dir: /no\n", "/run/gpu-nodeagent"),
        ("  state_dir: /no\n", "/run/gpu-nodeagent"),
    ],
)
def test_hooks_find_the_state_directory_as_the_loader_does(place: Path, text: str, expected: str) -> None:
    assert state_dir_of(text) == expected


def test_settings_that_contradict_each_other(place: Path) -> None:
    assert "data_dir" in problems(place, "state_dir: /run/x\ndata_dir: /run/x\n")[0]
    [problem] = problems(place, "\ninterval: 60s\n")
    assert problem.startswith(f"{place}/config.yaml:2: interval: hooks.verdict_max_age")


def test_a_file_that_others_can_write_is_refused_in_one_line(place: Path) -> None:
    (place / "config.yaml").write_text("")
    (place / "config.yaml").chmod(0o666)
    with pytest.raises(ConfigError, match="others can write it") as caught:
        load(place / "config.yaml")
    assert len(str(caught.value).splitlines()) == 1


def test_yes_and_no_are_words_where_words_are_wanted() -> None:
    assert values.one_of("auto", "yes", "no")(True) == "yes"
    assert values.one_of("auto", "YES", "JOB")(True) == "YES"
    with pytest.raises(ValueError, match="one of"):
        values.one_of("auto", "JOB")(True)


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("10s", 10), ("5m", 300), ("2h", 7200), (3, 3), ("4", 4)]
)
def test_durations(text: object, seconds: float) -> None:
    assert values.duration(text) == seconds


def test_what_a_gpu_is_to_be_like_between_two_jobs_is_read_as_people_write_it(place: Path) -> None:
    (place / "config.yaml").write_text(
        "cleanup: {persistence: on, power_limit: 300, leftover_memory: 1 GiB, application_clocks: '2619,1980'}\n"
    )
    cleanup = load(place / "config.yaml").config.cleanup
    assert (cleanup.persistence, cleanup.power_limit, cleanup.leftover_memory) == ("on", "300", 1 << 30)
    assert (cleanup.application_clocks, cleanup.compute_mode, cleanup.kill) == ("2619,1980", "keep", True)


def test_every_setting_has_a_reader_that_takes_its_default_or_documents_none() -> None:
    keys = [key for key, _ in flatten(Config())]
    assert len(keys) == len(set(keys)) and {"state_dir", "roots.proc", "scheduler.kind"} <= set(keys)


def test_hooks_get_what_they_read_and_it_survives_the_file() -> None:
    settings = hook_settings(Config())
    assert settings["scheduler.kind"] == "local" and settings["node_name"]
    conf = HookConf(
        {**settings, "odd": "a\tb=\nc%"}, (Source("/etc/x y", 5, 6, "ab"),), {0: Gres(2), 1: Gres(3, (21, 22), 4)}
    )
    again = decode_hook_conf("x", conf.encode())
    assert again.settings == conf.settings
    assert [(at, gres.minor, gres.caps, gres.slots) for at, gres in again.gres.items()] == [
        (0, 2, (), 1),
        (1, 3, (21, 22), 4),
    ]
    older = decode_hook_conf("x", "format=1\ngres\t0\t2\n").gres[0]
    assert (older.minor, older.caps, older.slots) == (2, (), 1)
    assert [(s.path, s.mtime_ns, s.size, s.sha256) for s in again.sources] == [("/etc/x y", 5, 6, "ab")]


def test_a_source_that_changed_is_noticed(place: Path) -> None:
    path = place / "config.yaml"
    path.write_text("interval: 10s\n")
    status = path.stat()
    source = Source(str(path), status.st_mtime_ns, status.st_size, "")
    assert not source.changed()
    path.write_text("interval: 100s\n")
    assert source.changed()
    path.unlink()
    assert source.changed()


def test_a_check_of_the_site_is_read_as_people_write_it(place: Path) -> None:
    (place / "config.yaml").write_text(
        "checks:\n  nhc: {command: [/usr/sbin/nhc, -t, 50], user: nobody, timeout: 1m, unit_from: text}\n"
    )
    found = load(place / "config.yaml").config.checks
    assert found == {"nhc": SiteCheck(("/usr/sbin/nhc", "-t", "50"), "nobody", 60.0, unit_from="text")}
