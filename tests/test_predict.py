"""benchmarks/predict.py prints the Markdown tables of docs/results.md."""

from benchmarks import predict


def test_prints_one_table_a_shape_with_a_row_a_kind(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["predict.py"])
    predict.main()
    lines = capsys.readouterr().out.splitlines()
    for kind in predict.KINDS:
        assert sum(line.startswith(f"| {kind} |") for line in lines) == len(predict.SHAPES)
    tables = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in tables} == {7}
    (row,) = [line for line in tables[: len(predict.KINDS) + 3] if "| low_rank 8 |" in line]
    assert row.split("|")[2].strip() == "1.45"
