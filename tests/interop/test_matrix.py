"""The table of docs/runtimes.md is what `tec-zoo matrix` finds now: what runs where, and why not."""

import json
import re

from conftest import ROOT, tec_zoo

# A cell of a variant that ran: its largest |Δ| and smallest cosine, which differ between machines.
RAN = re.compile(r"\b\de-?\d+ \(\d\.\d+\)")


def verdicts(table):
    return RAN.sub("ran", table).splitlines()


def test_the_documented_matrix_is_the_one_found(models):
    text = (ROOT / "docs" / "runtimes.md").read_text()
    documented = text.split("<!-- tec-zoo matrix: begin -->\n")[1].split("<!-- tec-zoo matrix: end -->")[0]
    found = tec_zoo("matrix", models["tec"], "--markdown", "--threads", 2)
    assert verdicts(documented) == verdicts(found), f"docs/runtimes.md should say\n{found}"


def test_every_variant_that_export_offers_has_a_row_and_none_runs_wrong(models):
    matrix = json.loads(tec_zoo("matrix", models["tec"], "--json", "--runtimes", "tract"))
    rows = [dict(zip(matrix["columns"], row["labels"], strict=True)) for row in matrix["rows"]]
    usage = tec_zoo("export", "--help")
    purposes = set(re.findall(r"^ {10}- ([a-z-]+):", usage.split("--for")[1].split("[default: tokens]")[0], re.MULTILINE))
    assert {row["for"] for row in rows} == purposes
    assert {row["size"] for row in rows} == {"fixed", "dynamic"}
    assert {row["adapters"] for row in rows} == {"drop", "keep"}
    assert {row["dtype"] for row in rows} == {"f32", "f16", "int8"}
    for row in matrix["rows"]:
        assert all(cell["verdict"] != "differs" for _, cell in row["cells"]), row
