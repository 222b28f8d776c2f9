"""What `dftfactory init` writes can be used as it stands, and says what is true of the package."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from dftfactory import setup_files
from dftfactory.config import DFTConfig
from dftfactory.errors import ConfigError
from dftfactory.recovery import LADDER
from dftfactory.setup_files import refuse_to_overwrite, write_start_files

FW_CONFIGS = Path(__file__).parents[1] / "fw_configs"


def plain(value: Any) -> Any:
    """Tuples as lists, as they come from YAML."""
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return {key: plain(entry) for key, entry in value.items()} if hasattr(value, "items") else value


def uncommented(text: str) -> str:
    """Take the hash from every optional line: `# key: value` of a known key, and what is indented below it."""
    keys = "|".join(DFTConfig.model_fields)
    return re.sub(rf"^# ((?:{keys}):.*|  .*)$", r"\1", text, flags=re.MULTILINE)


def test_every_file_is_written_and_named(tmp_path: Path) -> None:
    written = write_start_files(tmp_path / "new" / "project")
    names = ["dft.yaml", *(f"fw_configs/{path.name}" for path in sorted(FW_CONFIGS.iterdir()) if path.is_file())]
    assert [str(path.relative_to(tmp_path / "new" / "project")) for path in written] == names
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(written)


def test_fw_configs_are_copied_with_the_name_of_their_folder(tmp_path: Path) -> None:
    """`export FW_CONFIG_FILE=...` is then all that FireWorks' commands need."""
    write_start_files(tmp_path)
    for source in filter(Path.is_file, FW_CONFIGS.iterdir()):
        expected = source.read_text().replace("# CONFIG_FILE_DIR:", "CONFIG_FILE_DIR:")
        expected = expected.replace("/path/to/this/folder", str(tmp_path / "fw_configs"))
        assert (tmp_path / "fw_configs" / source.name).read_text() == expected
    assert f"\nCONFIG_FILE_DIR: {tmp_path / 'fw_configs'}\n" in (tmp_path / "fw_configs" / "FW_config.yaml").read_text()


def test_template_states_the_defaults(tmp_path: Path) -> None:
    """Whoever changes a default must change it there, too; ecutwfc has none."""
    write_start_files(tmp_path)
    stated = YAML(typ="safe").load(tmp_path / "dft.yaml")
    defaults = DFTConfig(ecutwfc=stated["ecutwfc"]).to_dict()
    assert {key: value for key, value in stated.items() if key != "pseudopotential_dir"} == {
        key: value for key, value in defaults.items() if key in stated
    }
    assert DFTConfig.from_yaml(tmp_path / "dft.yaml").pseudopotential_dir == str(tmp_path / "pseudopotentials")


def test_template_shows_every_key_and_its_optional_parts_are_valid(tmp_path: Path) -> None:
    write_start_files(tmp_path)
    text = uncommented((tmp_path / "dft.yaml").read_text())
    (tmp_path / "all.yaml").write_text(text)

    config = DFTConfig.from_yaml(tmp_path / "all.yaml")

    assert set(YAML(typ="safe").load(text)) == set(DFTConfig.model_fields)
    assert config.pw == {"system": {"vdw_corr": "dft-d3", "hubbard_u": {"Fe": 4.6}, "lda_plus_u": True}}
    assert config.pseudopotentials == {"Si": "Si.upf"}


def test_ladder_of_the_template_is_the_built_in_one(tmp_path: Path) -> None:
    write_start_files(tmp_path)
    assert YAML(typ="safe").load(uncommented((tmp_path / "dft.yaml").read_text()))["ladder"] == plain(LADDER)


def test_examples_in_the_prose_are_meant_for_the_reader(tmp_path: Path) -> None:
    """The template goes through str.format: a brace that was not doubled would raise, a doubled one must be single."""
    write_start_files(tmp_path)
    text = (tmp_path / "dft.yaml").read_text()
    assert "such as {Fe: 2.5}" in text
    assert "{{" not in text


def test_folder_with_a_blank_in_its_name_stands_between_quotes(tmp_path: Path) -> None:
    """In YAML and in the lines of shell alike."""
    write_start_files(tmp_path / "my project")
    folder = tmp_path / "my project" / "fw_configs"
    texts = {path.name: path.read_text() for path in folder.iterdir()}
    assert YAML(typ="safe").load(texts["FW_config.yaml"])["CONFIG_FILE_DIR"] == str(folder)
    assert YAML(typ="safe").load(texts["my_qadapter_pbs.yaml"])["_fw_template_file"] == f"{folder}/PBS_template.txt"
    adapter = YAML(typ="safe").load(texts["my_qadapter.yaml"])
    assert shlex.split(adapter["rocket_launch"])[:4] == ["exec", "rlaunch", "-c", str(folder)]
    assert shlex.split(adapter["pre_rocket"].splitlines()[0])[1] == f"FW_CONFIG_FILE={folder}/FW_config.yaml"


@pytest.mark.parametrize("folder", ["/data/upf", "/data/Ecole d'ete: #1 {pbe}", '/data/"quoted" \\ ü', "/no", "/1e5"])
def test_folder_of_pseudopotentials_may_have_any_name(tmp_path: Path, folder: str) -> None:
    write_start_files(tmp_path, folder)
    assert DFTConfig.from_yaml(tmp_path / "dft.yaml").pseudopotential_dir == folder


def test_relative_folder_of_pseudopotentials_is_meant_from_where_the_user_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dft.yaml would take it from its own folder."""
    monkeypatch.chdir(tmp_path)
    write_start_files(Path("project"), "upf")
    assert DFTConfig.from_yaml("project/dft.yaml").pseudopotential_dir == str(tmp_path / "upf")


@pytest.mark.parametrize("there", ["dft.yaml", "fw_configs/my_fworker.yaml"])
def test_nothing_is_overwritten_and_nothing_else_is_written(tmp_path: Path, there: str) -> None:
    (tmp_path / "fw_configs").mkdir()
    (tmp_path / there).write_text("mine")
    with pytest.raises(ConfigError, match=rf"{there} already there; nothing was written"):
        write_start_files(tmp_path)
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["mine"]


def test_questions_come_after_the_look_for_files(tmp_path: Path) -> None:
    """Nobody answers nine questions in vain."""
    refuse_to_overwrite(tmp_path)
    (tmp_path / "dft.yaml").write_text("mine")
    with pytest.raises(ConfigError, match=r"dft\.yaml already there"):
        refuse_to_overwrite(tmp_path)


def test_link_to_nowhere_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "dft.yaml").symlink_to("elsewhere.yaml")
    with pytest.raises(ConfigError, match="already there"):
        write_start_files(tmp_path)
    assert not (tmp_path / "elsewhere.yaml").exists()


def test_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"file cannot be written \(.*\); nothing was written"):
        write_start_files(tmp_path / "file")


def test_disk_that_fills_up_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = setup_files.write_atomically

    def fill(path: Path, text: str) -> None:
        if path.name == "my_launchpad.yaml":
            raise OSError(28, "No space left on device")
        write(path, text)

    monkeypatch.setattr(setup_files, "write_atomically", fill)
    with pytest.raises(ConfigError, match="No space left on device"):
        write_start_files(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "fw_configs")
    assert write_start_files(tmp_path)


def test_broken_installation_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup_files, "_FW_CONFIGS", None)
    with pytest.raises(ConfigError, match="install dftfactory again"):
        write_start_files(tmp_path)
