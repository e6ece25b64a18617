import pytest

from pyramid_ops import __main__ as cli


@pytest.fixture
def photo(tmp_path):
    pytest.importorskip("PIL.Image")
    from tests.demo.pictures import picture

    picture(100, 150).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def refused(capsys):
    """Runs a command that must fail; its error without the newline."""

    def run(*arguments) -> str:
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        error = capsys.readouterr().err
        assert code == 2, error
        assert error.count("\n") == 1, error
        return error.rstrip("\n")

    return run
