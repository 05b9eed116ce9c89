"""What principals are charged, where newcomers begin, and which accounts are kept."""

from penstock.scheduler.accounts import OUTPUT_TOKEN_COST, Accounts, charge_row
from penstock.scheduler.messages import Submit
from penstock.scheduler.plan import ScheduledRow
from penstock.scheduler.request import Request
from penstock.scheduler.sampling_params import SamplingParams


def enter_and_wait(accounts: Accounts, principal: str, weight: float = 1.0) -> None:
    accounts.enter(principal, weight)
    accounts.begin_waiting(principal)


def make_request(num_prompt: int, output: tuple[int, ...] = ()) -> Request:
    job = Submit("r", "m", [1] * num_prompt, SamplingParams(max_tokens=50, seed=0), 0.0, list(output))
    return Request.from_submit(job)


def test_a_charge_counts_in_inverse_proportion_to_the_weight() -> None:
    accounts = Accounts()
    enter_and_wait(accounts, "one", 1.0)
    enter_and_wait(accounts, "three", 3.0)
    accounts.charge("one", 30.0)
    accounts.charge("three", 30.0)
    assert (accounts.counter("one"), accounts.counter("three")) == (30.0, 10.0)
    assert (accounts.owed("three", "one"), accounts.owed("one", "three")) == (60.0, -20.0)
    accounts.enter("three", 1.5)  # another weight from now on
    accounts.charge("three", 30.0)
    assert accounts.counter("three") == 30.0


def test_idle_time_earns_nothing() -> None:
    accounts = Accounts()
    for name in ("a", "b"):
        enter_and_wait(accounts, name)
    accounts.charge("a", 100.0)
    accounts.charge("b", 60.0)
    accounts.enter("new", 1.0)
    assert accounts.counter("new") == 60.0  # of those that wait, b has had least
    accounts.charge("b", 100.0)
    accounts.enter("a", 1.0)
    assert accounts.counter("a") == 100.0  # it waits already: what it is owed it keeps
    accounts.enter("new", 1.0)
    assert accounts.counter("new") == 100.0  # nothing of it has waited meanwhile


def test_who_comes_when_nobody_waits_is_ahead_of_nobody_that_runs() -> None:
    accounts = Accounts()
    for name in ("busy", "modest"):
        enter_and_wait(accounts, name)
    for name, cost in (("busy", 500.0), ("modest", 20.0)):
        accounts.end_waiting(name)
        accounts.charge(name, cost)
    accounts.enter("new", 1.0)
    assert accounts.counter("new") == 500.0


def test_who_had_more_still_has_had_more_when_it_comes_back() -> None:
    accounts = Accounts()
    for name in ("a", "b"):
        enter_and_wait(accounts, name)
    accounts.charge("b", 70.0)
    accounts.end_waiting("b")
    accounts.leave("b")
    accounts.charge("a", 10.0)
    accounts.enter("b", 1.0)
    assert accounts.counter("b") == 70.0


def test_nothing_is_kept_of_an_idle_device_and_little_of_made_up_principals() -> None:
    accounts = Accounts()
    enter_and_wait(accounts, "a")
    for number in range(10_000):
        accounts.enter(f"key-{number}", 1.0)
        accounts.charge(f"key-{number}", 5.0)
        accounts.leave(f"key-{number}")
    assert accounts.num_accounts < 5000
    accounts.enter("key-9999", 1.0)
    assert accounts.counter("key-9999") == 5.0
    accounts.leave("key-9999")
    accounts.end_waiting("a")
    accounts.leave("a")
    assert accounts.num_accounts == 0


def test_without_fair_share_everybody_stays_equal() -> None:
    accounts = Accounts(fair=False)
    for name in ("a", "b"):
        enter_and_wait(accounts, name)
    accounts.charge("a", 100.0)
    assert accounts.counter("a") == accounts.counter("b") == accounts.owed("a", "b") == 0.0


def test_what_is_computed_for_the_first_time_is_charged_once() -> None:
    request = make_request(10)
    assert charge_row(ScheduledRow(request, 0, 6)) == 6.0
    assert charge_row(ScheduledRow(request, 6, 4)) == 4.0
    request.token_ids += [5, 6]
    assert charge_row(ScheduledRow(request, 10, 1)) == OUTPUT_TOKEN_COST
    # It gave way and is computed again, up to a token that is new.
    assert charge_row(ScheduledRow(request, 0, 8)) == 0.0
    assert charge_row(ScheduledRow(request, 8, 4)) == OUTPUT_TOKEN_COST
    # Guesses cost when they come true, with the row after them.
    request.token_ids += [7]
    assert charge_row(ScheduledRow(request, 12, 3, drafts=(8, 9))) == OUTPUT_TOKEN_COST
    request.token_ids += [8, 9, 1]
    assert charge_row(ScheduledRow(request, 15, 1)) == 3 * OUTPUT_TOKEN_COST


def test_a_job_that_goes_on_elsewhere_has_paid_for_what_it_brings() -> None:
    request = make_request(10, output=(5, 6))
    assert charge_row(ScheduledRow(request, 0, 12)) == OUTPUT_TOKEN_COST
