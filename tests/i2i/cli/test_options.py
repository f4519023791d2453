"""From words to configurations: spellings, published names, types, and what mistakes are answered with."""

from dataclasses import dataclass, fields

import pytest

from i2i.cli import options
from i2i.config import Config, NetworkConfig, convert
from i2i.errors import UsageError
from i2i.files import published_options
from i2i.methods import METHODS
from i2i.methods.cut import CUTConfig


def read(line: str, config: type[Config] = CUTConfig) -> dict:
    given = options.read_words(line.split())
    return options.take_command(given), options.translate_names(given, config)


def test_all_spellings_are_one():
    for line in ("batch_size=4", "--batch_size 4", "--batch-size 4", "--batch-size=4", "--Batch-Size 4"):
        assert read(line) == ({}, {"batch_size": "4"})
    assert read("--no_flip n_epochs=1") == ({}, {"flip": False, "n_epochs": "1"})  # a flag takes no value
    assert read("--data a b lr=1e-4 --flip") == ({}, {"data": ["a", "b"], "lr": "1e-4", "flip": True})


def test_a_command_line_of_the_cut_repository():
    command, settings = read(
        "--dataroot ./datasets/horse2zebra --name h2z --CUT_mode FastCUT --netG resnet_9blocks --normG instance "
        "--no_dropout --no_flip --nce_T 0.1 --netF mlp_sample --netF_nc 128 --lambda_NCE 10 --gpu_ids 0 "
        "--n_epochs 150 --direction BtoA --nce_includes_all_negatives_from_minibatch True --nce_layers 0,4,8"
    )
    assert command == {"output": "checkpoints/h2z", "method": "fastcut", "device": "cuda:0"}
    config = METHODS["fastcut"].Config.from_dict(settings)
    assert config.data == ("./datasets/horse2zebra",) and config.direction == "BtoA" and config.n_epochs == 150
    assert (config.flip, config.temperature, config.feature_width, config.lambda_nce) == (False, 0.1, 128, 10.0)
    assert config.negatives == "minibatch" and config.nce_layers == (0, 4, 8)


def test_a_command_line_of_the_cyclegan_repository():
    command, settings = read(
        "--dataroot maps --name maps --model cycle_gan --pool_size 20 --lambda_A 5 --checkpoints_dir c --gpu_ids -1 "
        "--continue_train",
        METHODS["cyclegan"].Config,
    )
    assert command == {"resume": "c/maps", "method": "cyclegan", "device": "cpu"}
    assert settings == {"data": ["maps"], "pool_size": "20", "lambda_a": "5"}


def test_published_options_without_a_meaning_are_named_and_left_out(capsys):
    assert read("--display_id 0 --lr 1e-3") == ({}, {"lr": "1e-3"})
    assert "display_id is left out: there is no visdom server" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--lamda_NCE 3", r"unknown option: lamda_nce \(did you mean lambda_nce\?\)"),
        ("--metod cut", r"did you mean method\?"),
        ("3", "'3' belongs to no option"),
        ("--lr 1 2", "'2' is one value too many for lr"),
        ("lr=1 lr=2", "lr is given twice"),
        ("--netG a generator=b", "generator is given twice, as 'a' and as 'b'"),
        ("--output", "output needs a value"),
        ("--data", "data needs a value"),
        ("--method cut -data a", "'-data' belongs to no option"),
        ("--gpu_ids 0,1", "torchrun"),
        ("--continue_train", "continue_train needs name"),
    ],
)
def test_mistakes(line, message):
    with pytest.raises(UsageError, match=message):
        read(line)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", "2.5", "steps must be a whole number, got '2.5'"),
        ("steps", True, "steps must be a whole number, got True"),
        ("lr", "fast", "lr must be a number, got 'fast'"),
        ("lr", "nan", "lr must be a number, got 'nan'"),
        ("flip", "maybe", "flip must be true or false, got 'maybe'"),
        ("gan_mode", 3, "gan_mode must be a word, got 3"),
        ("data", 3, "data must be values separated by commas, got 3"),
        ("gan_mode", "wasserstein", "gan_mode must be one of lsgan, "),
        ("precision", "half", "precision must be one of float32, bfloat16, float16, got half"),
        ("batch_size", 0, "batch_size must be at least 1, got 0"),
        ("lr", 0, "lr must be above 0, got 0.0"),
        ("ema", 1, r"ema must be in \[0, 1\), got 1.0"),
        ("ngff", 3, r"unknown option: ngff \(did you mean ngf\?\)"),
    ],
)
def test_wrong_values(name, value, message):
    with pytest.raises(UsageError, match=message):
        NetworkConfig.from_dict({name: value})


def test_values_become_what_their_fields_are():
    @dataclass
    class Some(Config):
        layers: tuple[int, ...] = ()

    config = Some.from_dict({"layers": "0, 4", "lr": "1e-3", "steps": "7", "flip": "no", "data": ["a,b"]})
    assert config.layers == (0, 4) and config.lr == 1e-3 and config.steps == 7 and not config.flip
    assert config.data == ("a,b",)
    assert convert("steps", 7.0, int) == 7


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_has_a_help(name):
    config = METHODS[name].Config
    lines = options.describe(config).splitlines()
    for field, line in zip(fields(config), lines, strict=True):
        setting, _, text = line.strip().partition("  ")
        assert setting.startswith(f"{field.name}=") and text.strip(), line
        assert not text.strip().startswith("...") and not text.endswith("..") or field.name == "preprocess", line


def test_a_default_of_its_own_keeps_the_help():
    lines = {line.split("=")[0].strip(): line for line in options.describe(METHODS["sincut"].Config).splitlines()}
    assert lines["lr"].split(maxsplit=1) == ["lr=0.002", "learning rate of Adam at the start"]
    assert lines["n_epochs"].endswith("epochs of 100,000 crops at the full learning rate")


@pytest.mark.parametrize("name", METHODS)
def test_a_configuration_survives_being_written_and_read(name, tmp_path):
    config = METHODS[name].Config
    lines = [line.split()[0] for line in options.describe(config).splitlines()]
    given = options.read_words([line for line in lines if not line.endswith("=")])
    assert config.from_dict(options.translate_names(given, config)) == config()
    file = tmp_path / "config.yaml"
    file.write_text("\n".join(line.replace("=", ": ", 1) for line in lines if not line.endswith("=")))
    assert config.from_dict(options.translate_names(options.read_file(file), config)) == config()


def test_files_that_cannot_be_read(tmp_path):
    for content, message in {"lr: [": "is not YAML", "- lr": "must hold lines"}.items():
        (tmp_path / "c.yaml").write_text(content)
        with pytest.raises(UsageError, match=message):
            options.read_file(tmp_path / "c.yaml")
    with pytest.raises(UsageError, match="No such file"):
        options.read_file(tmp_path / "nowhere.yaml")


PUBLISHED = """----------------- Options ---------------
                 CUT_mode: FastCUT                       
          checkpoints_dir: ./checkpoints                 
           continue_train: False                         
                 dataroot: ./datasets/grumpy, cat        \t[default: placeholder]
               display_id: None                          
                  gpu_ids: 0                             
                  isTrain: True                          \t[default: None]
               lambda_NCE: 5.0                           \t[default: 1.0]
         max_dataset_size: inf                           
                    model: cut                           
                     name: grumpycat                     \t[default: experiment_name]
nce_includes_all_negatives_from_minibatch: True                          \t[default: False]
                  netF_nc: 128                           \t[default: 256]
                     netG: resnet_6blocks                \t[default: resnet_9blocks]
          no_antialias_up: True                          \t[default: False]
               no_dropout: True                          
                  no_flip: False                         
                    normD: instance                      
                    normG: instance                      
                pool_size: 0                             
                   suffix:                               
----------------- End -------------------
"""


def test_a_published_train_opt_file(tmp_path, capsys):
    """What the run was, and not where it was written; the command line wins."""
    (tmp_path / "train_opt.txt").write_text(PUBLISHED)
    given = options.read_file(tmp_path / "train_opt.txt")
    assert capsys.readouterr().err.endswith("without a meaning for fastcut, left out: pool_size\n")
    assert options.take_command(given) == {"method": "fastcut"}
    config = METHODS["fastcut"].Config.from_dict(
        options.translate_names(given | {"ngf": "8"}, METHODS["fastcut"].Config)
    )
    assert (config.data, config.ngf, config.lambda_nce) == (("./datasets/grumpy, cat",), 8, 5.0)
    assert (config.generator, config.feature_width, config.negatives) == ("resnet_6blocks", 128, "minibatch")
    assert (config.antialias_up, config.dropout, config.flip, config.max_dataset_size) == (False, False, True, 0)
    assert published_options(tmp_path / "none.txt") == {}


@pytest.mark.parametrize("line", ["--max_dataset_size inf", "max_dataset_size=Inf"])
def test_the_published_word_for_no_limit(line):
    assert CUTConfig.from_dict(read(line)[1]).max_dataset_size == 0


def test_continue_train_that_is_false_is_no_wish(tmp_path):
    assert read("--continue_train False --name x")[0] == {"output": "checkpoints/x"}


def test_init_from_takes_several_paths_and_makes_them_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for line in ("--init_from a,b c", "--lr 1 --init-from a,b c"):
        assert read(line)[1]["init_from"] == [str(tmp_path / "a,b"), str(tmp_path / "c")]
    assert read("init_from=a,b")[1]["init_from"] == [str(tmp_path / "a,b")]


def test_weights_of_another_run_by_the_published_option(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command, settings = read("--name new --continue_train --pretrained_name old --checkpoints_dir c")
    assert command == {"output": "c/new"} and settings == {"init_from": [str(tmp_path / "c/old")]}


def test_weights_alone_cannot_be_gone_on_with_exactly(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints/h2z").mkdir(parents=True)
    (tmp_path / "checkpoints/h2z/latest_net_G.pth").touch()
    with pytest.raises(UsageError, match="no checkpoint.pt to go on from exactly.* with --init_from checkpoints/h2z"):
        read("--name h2z --continue_train")
    (tmp_path / "checkpoints/h2z/checkpoint.pt").touch()
    assert read("--name h2z --continue_train")[0] == {"resume": "checkpoints/h2z"}
