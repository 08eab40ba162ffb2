import pytest

from client.site_file import SiteFile
from common.near_keys import meant
from common.plan import Plan


@pytest.mark.parametrize(
    ("path", "key"),
    [
        (["training", "learning_rte"], "training.learning_rate"),
        (["training", "batchsize"], "training.batch_size"),
        (["trainning"], "training"),
        (["privacy", "secure_agregation"], "privacy.secure_aggregation"),
        (["privacy", "dp", "epsilonn"], "privacy.dp.epsilon"),
        (["federation", "learning_rate"], "training.learning_rate"),  # another table
        (["epsilon"], "privacy.dp.epsilon"),  # no table
        (["task", "clases"], "task.classes"),  # one of two kinds
    ],
)
def test_the_key_that_was_meant_is_named(path, key):
    assert meant(Plan, path) == f", did you mean {key}?"


def test_no_key_is_made_up_where_none_is_near():
    assert meant(Plan, ["training", "lr"]) == ""
    assert meant(Plan, ["zzz"]) == ""
    assert meant(Plan, ["training", "name"]) == ""  # in several tables
    assert meant(Plan, ["task", "attribute"]) == ""  # of the other kind of task


def test_a_sites_settings_have_it_too():
    assert meant(SiteFile, ["policy", "max_run"]) == ", did you mean policy.max_runs?"
