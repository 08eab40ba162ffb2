"""What the hub says of a number that a site gave instead of an answer.

Sites send numbers only (`common.error_numbers`). Every sentence here is the hub's own,
so that nothing a site or whoever speaks for it writes ever stands in a log, a journal
or a report. What it was in detail, the hospital's engineer finds in the site's log,
under the same number.
"""

from collections.abc import Mapping
from typing import Final

from common.error_numbers import number_of, parts_of, spoken
from common.errors import FedctError

_LOG = "the engineer there finds more in the site's log"
KINDS: Final[Mapping[int, str]] = {
    1: f"site met an error that FedCT did not foresee; {_LOG}",
    10: "site can't work by this plan: its data or its copy of the plan does not fit; "
    f"{_LOG}",
    20: f"site can't take its images in; {_LOG}, and in `fedct intake`",
    21: f"site can't use its labels; {_LOG}",
    22: f"site has a volume whose geometry can't be used; {_LOG}",
    23: f"site's own files are damaged, or its disk is full; {_LOG}",
    24: "site's disk is full; make room there, it is asked again",
    30: "site can't build this plan's network, or the model does not fit it; are both "
    "sides of one FedCT version?",
    31: "site's training went wrong: its loss is not finite; lower "
    "training.learning_rate or set training.max_grad_norm",
    32: "site ran out of memory for this plan's batches; free some on its machine, or "
    "choose a smaller training.batch_size or training.patch",
    40: "site refused the order as one that it can't trust; are both sides of one "
    "FedCT version?",
    43: f"site can't compute as this plan asks, for want of a device; {_LOG}",
    50: f"site has trouble with its keys or certificates; {_LOG}",
    51: f"site has trouble with its line; {_LOG}",
    53: f"site's own policy says no; {_LOG}",
    54: f"site's service could not do the order; {_LOG}",
    56: "site speaks another contract; bring both sides to one FedCT version",
    130: "site's engineer stopped the order; it is asked again in the next round",
}
"""Exit code of the site's error to a sentence."""
CHECKS: Final[Mapping[tuple[int, int], str]] = {
    (23, 1): "site can't note the order that it begins; is its disk full?",
    (23, 2): "site can't keep or read its training state; is its disk full, or a file "
    "damaged?",
    (23, 3): "site can't write its audit log, or found it altered, so nothing leaves "
    f"it; {_LOG} and in `fedct client audit`",
    (23, 4): "site can't write its privacy ledger, or found it altered, so nothing is "
    f"trained there; {_LOG} and in `fedct client ledger`",
    (23, 5): "site can't keep or read what it notes of rounds and sites; "
    "is its disk full, or a file damaged?",
    (23, 6): "site can't keep or read what its engineer decided; is its disk full, or "
    "a file damaged?",
    (40, 1): "site got an order for another plan than the one it works by",
    (40, 2): "site got a model that is not the one announced; nothing was done",
    (40, 3): "site builds a model of another layout from this plan; are both sides of "
    "one FedCT version?",
    (40, 4): "site got a run whose id is no plain name",
    (40, 5): "site's answer in a file can't be opened any more; was its key renewed?",
    (40, 11): "site was shown, or asked to open, fewer sites than may be summed",
    (40, 12): "site does not accept the roster: a site on it is known there by another "
    "key, or its own is wrong; was a key renewed?",
    (40, 13): "site was shown terms under which too few shares would open a sum",
    (40, 14): "site has not the keys of this round, as after a restart, or was shown "
    "others; it is set up anew in the next round",
    (40, 15): "site was shown round keys that their site did not sign",
    (40, 16): "site got a share that does not open: it was changed, or the sites were "
    "told different things",
    (40, 17): "site was told of survivors that do not agree with the round, or with "
    "what the others were told",
    (40, 18): (
        "site gave its one answer for this round already: it opened another sum of it, "
        "or masked it among other sites or with other numbers"
    ),
    (40, 19): "site finds no room for a sum of so many sites in the plan's mask_bits",
    (
        40,
        20,
    ): "site was shown a cap of weights that can't be, or that is below its own weight",
    (
        40,
        21,
    ): "site was asked this round with another model or state before, or the run "
    "by another plan; a round has one question, and a run one plan",
    (40, 28): "site would have to cut more than one in twenty of its numbers; its "
    "training diverges, or the plan needs a larger privacy.mask_range",
    (
        40,
        29,
    ): "site's memory does not stem from the rounds, models and masks that it was "
    "told of; it takes part again in a round in which all begin anew",
    (51, 1): "site could not read the parts of its order; it is sent again",
    (53, 1): "site has not approved this plan; its engineer decides, with `fedct "
    "client approve`",
    (53, 2): "site is paused by its engineer; it takes no orders until it is resumed",
    (53, 3): "site did not queue this plan: too many wait there already, or it is far "
    "too long",
    (53, 4): "site's policy has no room for orders at this hour",
    (53, 5): "site's policy allows fewer rounds in a run than this plan has",
    (53, 6): "site's policy asks for more sites than this plan needs to close a round",
    (53, 7): "site's policy asks for secure aggregation, which this plan does without",
    (53, 8): "site's policy asks for differential privacy, which this plan does "
    "without",
    (53, 9): "site's policy allows no update as large as this plan may make, or as "
    "this one was",
    (53, 10): "site's privacy budget can't afford this; fewer rounds or more noise "
    "cost less, and its engineer sees what is left with `fedct client ledger`",
    (53, 11): "site's policy lets no answer of this kind leave",
    (53, 12): "site held an answer back that is not what may leave by its schema; "
    f"{_LOG}",
    (53, 13): "site's plan was approved with other sites or keys than those of this "
    "run; its engineer looks at them with `fedct client approve`",
    (53, 14): "site's policy allows fewer runs by one plan than it was asked for; "
    "another plan.seed makes it another plan, to be approved anew",
    (54, 1): "site's service died several times in the middle of this order; is its "
    "machine out of memory?",
    (56, 1): "site speaks a later contract than the hub; update FedCT at the hub",
    (56, 2): "site speaks an earlier contract than the hub; update FedCT at the site",
}
"""Exit code and number of the check to a sentence."""


def numbered(error: FedctError) -> str:
    """What the hub itself found wrong, for the record, with the number of its check."""
    return f"{error} (error {spoken(number_of(error))})"


def sentence_of(number: int) -> str:
    """A sentence for the record.

    Args:
        number: As it came from a site; any integer will do.
    """
    exit_code, check = parts_of(number)
    said = CHECKS.get((exit_code, check)) if check is not None else None
    said = said or KINDS.get(exit_code)
    if said is None:
        return "site gave an error number that this hub does not know"
    return f"{said} (error {spoken(number)})"
