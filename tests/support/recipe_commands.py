"""Commands of recipes as their users give them."""


def of(main):
    """Returns two functions of a recipe: one for commands that fail, which returns the line, and one for the others."""

    def fails(capsys, code, *argv):
        capsys.readouterr()
        assert main(list(map(str, argv))) == code
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1, err
        return err

    def command(capsys, *argv):
        capsys.readouterr()
        assert main(list(map(str, argv))) == 0
        return capsys.readouterr().out

    return fails, command
