use super::*;
use crate::aim::{Among, Area, Target};
use crate::checks::{CheckKind, CheckSpec, Status, Times};
use crate::heartbeat::GRACE;
use crate::lifecycle::{self, Lifecycle, Policy, RestartPolicy, SleepBy, StartBy, StopBy};
use crate::service::{Autostart, Autostop, Concurrency, PortSpec, Transport, Unit};

const PORT: PublishedPort = PublishedPort::tcp(80);
const AFTER: Duration = Duration::from_secs(60);

// ---- the warm path ------------------------------------------------------------------------------

#[test]
fn the_least_loaded_below_soft_gets_the_request_and_at_hard_nobody_does() {
    let mut world = World::new(vec![up(1).limits(1, Some(2)), up(2).limits(1, Some(2))]);
    let first = world.enter();
    let second = world.enter();
    assert_ne!(first.endpoint().machine, second.endpoint().machine, "PX-61: below soft first");
    let third = world.enter();
    let fourth = world.enter();
    assert_ne!(third.endpoint().machine, fourth.endpoint().machine);
    assert!(matches!(world.choose(), Choice::Hold(HoldReason::Full)), "PX-63");
    world.leave(first);
    assert!(matches!(world.choose(), Choice::Admitted(_)));
    let _still_inside = (second, third, fourth);
}

#[test]
fn another_region_is_used_only_when_this_one_cannot() {
    let mut world = World::new(vec![up(1).limits(1, Some(2)), up(2).region("ams")]);
    let claims: Vec<_> = (0..3).map(|_| world.enter()).collect();
    let machines: Vec<u64> = claims.iter().map(|c| c.endpoint().machine.as_u64()).collect();
    assert_eq!(machines, [1, 1, 2], "PX-62: soft limits shift traffic only inside a region");
}

#[test]
fn ties_are_spread() {
    let world = World::new(vec![up(1), up(2), up(3)]);
    let mut seen = std::collections::BTreeSet::new();
    for random in 0..64 {
        let Choice::Admitted(admission) = world.balancer.choose(PORT, Origin::Caller, random)
        else {
            panic!("three Machines are up");
        };
        seen.insert(admission.claim.endpoint().machine);
        assert!(admission.claim.release().is_some());
    }
    assert_eq!(seen.len(), 3);
}

#[test]
fn cordoned_and_drained_machines_get_nothing() {
    let mut world = World::new(vec![up(1).cordoned(), up(2)]);
    assert_eq!(world.enter().endpoint().machine, id(2), "PX-67");
    world.event(drain(2, 1, 7));
    assert!(matches!(world.choose(), Choice::Hold(HoldReason::Wake)));
}

#[test]
fn nothing_running_and_autostart_off_is_refused() {
    let world = World::new(vec![asleep(1).autostart(Autostart::Off)]);
    assert!(matches!(world.choose(), Choice::Refuse), "AS-73");
    assert!(
        world.balancer.route(PublishedPort::tcp(81)).is_none(),
        "an unpublished port has no route"
    );
}

#[test]
fn a_claim_of_a_dead_run_is_worthless_and_harmless() {
    let mut world = World::new(vec![up(1)]);
    let claim = world.enter();
    world.change(vec![up(1).run(2)]);
    assert!(!world.balancer.is_current(&claim));
    world.leave(claim);
    assert_eq!(world.belief(1).in_flight, 0);
    assert!(world.belief(1).open);
}

// ---- a successor --------------------------------------------------------------------------------

#[test]
fn a_retired_balancer_puts_nobody_to_sleep_and_tells_when_another_may() {
    let mut world = World::new(vec![up(1)]);
    world.event(Event::Retired);
    assert!(!world.balancer.rests(id(1), 1, world.now), "it was used a moment ago");
    assert!(world.balancer.rests(id(1), 2, world.now), "nobody knows of that run");
    assert_eq!(world.run_until(AFTER * 3), Vec::<String>::new());
    assert!(world.balancer.rests(id(1), 1, world.now));
    let claim = world.enter();
    assert!(!world.balancer.rests(id(1), 1, world.now), "somebody is inside");
    world.leave(claim);
    assert!(!world.balancer.rests(id(1), 1, world.now));
    world.run_until(AFTER);
    assert!(world.balancer.rests(id(1), 1, world.now));
}

#[test]
fn a_stop_that_a_retired_balancer_has_asked_for_is_off_and_its_callers_get_in() {
    let mut world = World::new(vec![up(1)]);
    assert_eq!(world.run_until(AFTER * 2), ["stop 1 run 1"]);
    assert!(!world.belief(1).open);
    world.event(Event::Retired);
    assert!(world.belief(1).open && !world.belief(1).asked);
    let claim = world.enter();
    // What was on its way is old news.
    let outcome = StopOutcome::Suspended;
    world.event(Event::StopDone { machine: id(1), attempt: 1, outcome });
    assert_eq!((world.belief(1).open, world.belief(1).in_flight), (true, 1));
    world.leave(claim);
    assert_eq!(world.run_until(AFTER * 2), Vec::<String>::new());
}

#[test]
fn a_retired_balancer_wakes_whom_its_callers_wait_for() {
    let mut world = World::new(vec![asleep(1)]);
    world.event(Event::Retired);
    assert_eq!(world.event(Event::Demand { port: PORT, waiting: 1 }), ["start 1"]);
}

#[test]
fn a_stop_is_refused_only_if_a_caller_came_after_it_was_wanted_whichever_proxy_he_came_by() {
    // The balancer of a former proxy that has begun anew knows no number of its own or of anybody else's.
    for (called_at, refused) in [(AFTER / 2, false), (AFTER * 3 / 2, true)] {
        let mut life = running();
        let mut former = World::new(vec![suspended(1)]);
        former.event(Event::Retired);
        former.run_until(called_at);
        assert_eq!(former.event(waiting(1)), ["start 1"]);
        let mut current = World::new(vec![up(1)]);
        assert_eq!(current.run_until(AFTER), ["stop 1 run 1"]);
        let start = StartBy::Proxy { attempt: former.attempts[0] };
        assert!(!refuses(&mut life, lifecycle::Event::Start(start)));
        let stop = |attempt| lifecycle::Event::Stop(StopBy::Proxy { run: 1, attempt });
        assert_eq!(refuses(&mut life, stop(current.attempts[0])), refused, "{called_at:?}");
        if refused {
            let outcome = StopOutcome::Refused { reason: "a caller came meanwhile".to_owned() };
            current.event(Event::StopDone { machine: id(1), attempt: 1, outcome });
            assert_eq!(current.run_until(AFTER), ["stop 1 run 1"]);
            assert!(!refuses(&mut life, stop(current.attempts[1])), "Machines do sleep");
        }
    }
}

/// A Machine that is up as its first run.
fn running() -> Lifecycle {
    let policy = Policy {
        kill_signal: 2,
        kill_timeout: Duration::from_secs(5),
        drain_timeout: Duration::from_secs(10),
        restart: RestartPolicy::OnFailure { retries_max: 0 },
        sleep: SleepBy::Stopping,
    };
    let mut life = Lifecycle::new(1, policy);
    assert!(!refuses(&mut life, lifecycle::Event::Start(StartBy::User)));
    assert!(!refuses(&mut life, lifecycle::Event::Launched { run: 1 }));
    life
}

/// Whether it says no to a stop.
fn refuses(life: &mut Lifecycle, event: lifecycle::Event) -> bool {
    life.handle_event(event, Timestamp::ZERO).expect("it makes sense");
    let mut said = std::iter::from_fn(|| life.poll_effect());
    let refused =
        |it| matches!(it, lifecycle::Effect::StopDone { outcome: StopOutcome::Refused { .. }, .. });
    said.any(refused)
}

// ---- autostart ----------------------------------------------------------------------------------

#[test]
fn a_thousand_waiting_start_one_machine_if_one_is_enough_and_both_if_not() {
    for (soft, wanted) in [(2_000, vec!["start 1"]), (250, vec!["start 1", "start 2"])] {
        let machines = || vec![asleep(1).limits(soft, None), asleep(2).limits(soft, None)];
        let mut world = World::new(machines());
        let mut effects = Vec::new();
        for waiting in 1..=1_000 {
            effects.extend(world.event(Event::Demand { port: PORT, waiting }));
        }
        assert_eq!(effects, wanted, "soft_limit {soft}");
    }
}

#[test]
fn waiting_callers_enter_when_the_machine_is_up_up_to_hard_and_then_one_by_one() {
    let mut world = World::new(vec![asleep(1).limits(1, Some(2))]);
    world.event(Event::Demand { port: PORT, waiting: 3 });
    let effects = world.event(started(1, 1, 2));
    assert_eq!(effects, ["admit 80 to 1", "admit 80 to 1"]);
    let claim = world.admitted.pop().expect("two were admitted");
    assert_eq!(world.leave(claim), ["admit 80 to 1"]);
    assert_eq!(world.belief(1).in_flight, 2);
}

#[test]
fn load_over_soft_on_all_wakes_another() {
    let limited = |m: View| m.limits(2, None);
    let mut world = World::new(vec![limited(up(1)), limited(asleep(2)), limited(asleep(3))]);
    let _two = (world.enter(), world.enter());
    assert_eq!(world.log(), Vec::<String>::new(), "at soft one Machine is enough");
    let _third = world.enter();
    assert_eq!(world.log(), ["start 2"], "AS-71");
}

#[test]
fn a_failed_start_backs_off_and_the_next_candidate_is_taken() {
    let mut world = World::new(vec![asleep(1), asleep(2)]);
    assert_eq!(world.event(Event::Demand { port: PORT, waiting: 1 }), ["start 1"]);
    assert_eq!(world.event(failed(1, 1)), ["start 2"], "AS-69");
    assert_eq!(world.event(failed(2, 2)), Vec::<String>::new(), "both back off; nobody is failed");
    assert_eq!(world.run_until(Duration::from_secs(1)), ["start 1", "start 2"][..1]);
}

#[test]
fn when_all_have_failed_three_times_the_callers_are_told() {
    let mut world = World::new(vec![asleep(1)]);
    let mut effects = world.event(Event::Demand { port: PORT, waiting: 5 });
    for attempt in 1..=3 {
        assert_eq!(effects.pop().as_deref(), Some("start 1"));
        effects = world.event(failed(1, attempt));
        if effects.is_empty() {
            effects = world.run_until(Duration::from_secs(2));
        }
    }
    assert_eq!(effects, ["fail 5 of 80"]);
}

#[test]
fn an_answer_to_an_older_attempt_is_dropped() {
    let mut world = World::new(vec![asleep(1)]);
    world.event(Event::Demand { port: PORT, waiting: 1 });
    world.event(failed(1, 1));
    assert_eq!(world.run_until(Duration::from_secs(1)), ["start 1"]);
    assert_eq!(world.event(failed(1, 1)), Vec::<String>::new());
    assert!(world.belief(1).asked, "the second attempt is still awaited");
    assert_eq!(world.event(started(1, 2, 2)), ["admit 80 to 1"]);
}

#[test]
fn callers_who_leave_do_not_end_the_start() {
    let mut world = World::new(vec![asleep(1)]);
    world.event(Event::Demand { port: PORT, waiting: 1 });
    world.event(Event::Demand { port: PORT, waiting: 0 });
    assert_eq!(
        world.event(Event::Demand { port: PORT, waiting: 1 }),
        Vec::<String>::new(),
        "OQ-09: it is still on its way"
    );
}

#[test]
fn a_crash_while_serving_its_first_requests_counts_as_a_failed_start() {
    let mut world = World::new(vec![up(1)]);
    let _claim = world.enter();
    world.change(vec![asleep(1)]);
    assert_eq!(world.event(Event::Demand { port: PORT, waiting: 1 }), Vec::<String>::new());
    assert_eq!(world.run_until(Duration::from_secs(1)), ["start 1"]);
}

#[test]
fn suspended_before_stopped_before_the_one_that_is_on_its_way_down() {
    let order = vec![
        asleep(1).state(MachineState::Stopping),
        asleep(2),
        asleep(3).state(MachineState::Suspended),
    ];
    let mut world = World::new(order.into_iter().map(|m| m.limits(1, None)).collect());
    assert_eq!(
        world.event(Event::Demand { port: PORT, waiting: 3 }),
        ["start 3", "start 2", "start 1"],
        "AS-68"
    );
}

#[test]
fn nobody_waits_for_a_slow_stop_while_another_machine_just_sleeps() {
    let slow = |n| asleep(n).state(MachineState::Stopping);
    let mut world = World::new(vec![slow(1), slow(2)]);
    assert_eq!(world.event(Event::Demand { port: PORT, waiting: 1 }), ["start 1"]);
    assert_eq!(world.change(vec![slow(1), asleep(2)]), ["start 2"]);
    assert_eq!(world.change(vec![asleep(1), asleep(2)]), Vec::<String>::new());
}

#[test]
fn callers_of_an_app_that_disappears_are_told() {
    let mut world = World::new(vec![asleep(1)]);
    world.event(Event::Demand { port: PORT, waiting: 2 });
    assert_eq!(world.change(vec![asleep(1).state(MachineState::Destroyed)]), ["fail 2 of 80"]);
    world.event(Event::Demand { port: PORT, waiting: 1 });
    assert_eq!(world.change(Vec::new()), Vec::<String>::new());
}

// ---- autostop -----------------------------------------------------------------------------------

#[test]
fn the_last_machine_sleeps_when_it_was_quiet_long_enough_and_not_before() {
    let mut world = World::new(vec![up(1)]);
    world.run_until(AFTER / 2);
    let claim = world.enter();
    assert_eq!(world.run_until(2 * AFTER), Vec::<String>::new(), "AS-32: load keeps it awake");
    world.leave(claim);
    assert_eq!(world.run_until(AFTER - Duration::from_micros(1)), Vec::<String>::new());
    assert_eq!(world.run_until(Duration::from_micros(1)), ["stop 1 run 1"]);
    assert!(matches!(world.choose(), Choice::Hold(HoldReason::Wake)), "closed in the same step");
}

#[test]
fn golden_table_of_excess() {
    // AS-31..37 for Machines without load; loaded ones are drained (DESIGN 4).
    for (running, over, asleep) in
        [(1, 0, 1), (1, 1, 0), (2, 0, 2), (2, 1, 0), (3, 1, 1), (5, 2, 2)]
    {
        let mut world = World::new((1..=running).map(|n| up(n).limits(1, None)).collect());
        let claims: Vec<_> = (0..over).map(|_| world.enter()).collect();
        let effects = world.run_until(AFTER);
        assert_eq!(effects.len(), asleep, "n={running} o={over}: {effects:?}");
        drop(claims);
    }
}

#[test]
fn the_floor_holds_in_the_primary_region_only() {
    let floor = |m: View| m.floor(1);
    let mut world = World::new(vec![
        floor(up(1)),
        floor(up(2)),
        floor(up(3).region("ams").elsewhere()),
        floor(up(4).region("ams").elsewhere()),
    ]);
    assert_eq!(
        world.run_until(AFTER),
        ["stop 3 run 1", "stop 4 run 1", "stop 1 run 1"],
        "AS-35; OQ-05: the floor only prevents stops"
    );
}

#[test]
fn load_elsewhere_does_not_count_here() {
    let mut world = World::new(vec![
        up(1).limits(1, Some(1)),
        up(2).limits(1, Some(1)),
        up(3).region("ams").limits(1, None),
    ]);
    let claims = [world.enter(), world.enter(), world.enter()];
    let [first, second, far] = claims;
    world.leave(first);
    world.leave(second);
    assert_eq!(far.endpoint().machine, id(3));
    assert_eq!(world.run_until(AFTER).len(), 2, "AS-34");
}

#[test]
fn leased_cordoned_and_autostop_off_machines_are_left_alone() {
    let off = up(3).autostop(Autostop::Off);
    let mut world = World::new(vec![up(1).leased(), up(2).cordoned(), off]);
    assert_eq!(world.run_until(10 * AFTER), Vec::<String>::new(), "MA-64, AS-61, AS-02");
}

#[test]
fn a_call_of_the_same_pool_does_not_restart_the_clock() {
    let mut world = World::new(vec![up(1)]);
    world.run_until(AFTER - Duration::from_secs(1));
    let Choice::Admitted(own) = world.balancer.choose(PORT, Origin::SamePool, 0) else {
        panic!("the Machine is up");
    };
    world.edge(own.edge);
    assert_eq!(world.run_until(Duration::from_secs(2)), Vec::<String>::new(), "load is load");
    let edge = own.claim.release();
    world.edge(edge);
    assert_eq!(world.log(), ["stop 1 run 1"], "AS-23");
}

#[test]
fn a_held_call_of_the_same_pool_does_not_restart_the_clock_but_one_beside_a_caller_may() {
    for (own_calls, stops) in [(1, vec!["stop 1 run 1"]), (0, vec![])] {
        let mut world = World::new(vec![up(1).limits(1, Some(1))]);
        let inside = world.enter();
        world.run_until(Duration::from_secs(1));
        world.event(Event::OwnCalls { port: PORT, waiting: own_calls });
        assert_eq!(world.event(Event::Demand { port: PORT, waiting: 1 }), Vec::<String>::new());
        assert_eq!(world.leave(inside), ["admit 80 to 1"]);
        let held = world.admitted.pop().expect("it was admitted");
        assert_eq!(world.run_until(AFTER), Vec::<String>::new(), "load is load");
        assert_eq!(world.leave(held), stops, "AS-23");
    }
}

#[test]
fn excess_with_load_is_drained_and_put_back_if_load_remains() {
    let mut world = World::new(vec![up(1), up(2)]);
    let (first, second) = (world.enter(), world.enter());
    assert_eq!(world.run_until(AFTER), Vec::<String>::new());
    let open = |world: &World| [world.belief(1).open, world.belief(2).open];
    assert_eq!(open(&world).iter().filter(|o| **o).count(), 1, "one takes no new work");
    assert_eq!(world.run_until(DRAIN_TIMEOUT), Vec::<String>::new(), "AS-63: nothing is cut");
    assert_eq!(open(&world), [true, true]);
    assert_eq!(world.run_until(AFTER - DRAIN_TIMEOUT - Duration::from_micros(1)).len(), 0);
    world.run_until(DRAIN_TIMEOUT + Duration::from_micros(1));
    let closed = if world.belief(1).open { 2 } else { 1 };
    let (on_closed, other) = match first.endpoint().machine == id(closed) {
        true => (first, second),
        false => (second, first),
    };
    assert_eq!(world.leave(on_closed), [format!("stop {closed} run 1")]);
    assert!(world.belief(3 - closed).open);
    drop(other);
}

#[test]
fn a_request_while_the_stop_is_under_way_starts_the_machine_again() {
    let mut world = World::new(vec![up(1)]);
    assert_eq!(world.run_until(AFTER), ["stop 1 run 1"]);
    assert_eq!(world.event(Event::Demand { port: PORT, waiting: 1 }), ["start 1"], "AS-66");
    let done = StopOutcome::Stopped;
    world.event(Event::StopDone { machine: id(1), attempt: 1, outcome: done });
    assert!(!world.belief(1).open);
    assert_eq!(world.event(started(1, 2, 2)), ["admit 80 to 1"]);
}

#[test]
fn a_refused_stop_opens_it_again_and_restarts_the_clock() {
    let mut world = World::new(vec![up(1)]);
    assert_eq!(world.run_until(AFTER), ["stop 1 run 1"]);
    let outcome = StopOutcome::Refused { reason: "leased".to_owned() };
    assert_eq!(
        world.event(Event::StopDone { machine: id(1), attempt: 1, outcome }),
        Vec::<String>::new()
    );
    assert!(world.belief(1).open);
    assert_eq!(world.run_until(AFTER), ["stop 1 run 1"]);
}

#[test]
fn all_services_of_a_machine_must_be_quiet_and_the_longest_time_counts() {
    let mut view = up(1).0;
    let mut second = view.services[0].clone();
    second.ports[0] = PortSpec { start: 5432, end: 5432, ..second.ports[0].clone() };
    second.auto_stop_after = 3 * AFTER;
    view.services = [view.services[0].clone(), second].into();
    let mut world = World::new(vec![View(view)]);
    let Choice::Admitted(inside) =
        world.balancer.choose(PublishedPort::tcp(5432), Origin::Caller, 0)
    else {
        panic!("the Machine is up");
    };
    world.edge(inside.edge);
    assert_eq!(world.run_until(10 * AFTER), Vec::<String>::new());
    let edge = inside.claim.release();
    world.edge(edge);
    assert_eq!(world.run_until(2 * AFTER), Vec::<String>::new());
    assert_eq!(world.run_until(AFTER), ["stop 1 run 1"], "AS-65, DESIGN 10");
}

// ---- what keeps it awake --------------------------------------------------------------------------

fn vetoes(world: &World, n: u64) -> Vec<Veto> {
    world.balancer.outlook(id(n)).expect("it is awake").vetoes
}

#[test]
fn a_machine_that_nobody_uses_tells_when_it_sleeps_and_one_in_use_how_many_use_it() {
    let mut world = World::new(vec![up(1), asleep(2)]);
    assert_eq!(world.balancer.outlook(id(2)), None);
    world.run_until(AFTER / 4);
    let claim = world.enter();
    let used = world.balancer.outlook(id(1)).expect("it is awake");
    assert_eq!((used.load, used.run, used.by), (1, 1, Autostop::Stop));
    assert!(used.vetoes.is_empty() && !used.leaving, "{used:?}");
    world.leave(claim);
    let unused = world.balancer.outlook(id(1)).expect("it is awake");
    assert_eq!((unused.load, unused.due), (0, world.now + AFTER));
    let left = unused.due.since(world.now);
    assert_eq!(world.run_until(left), ["stop 1 run 1"], "as was said");
    assert!(world.balancer.outlook(id(1)).expect("still up").leaving);
}

#[test]
fn what_was_said_of_a_pool_comes_true() {
    // Whoever has no veto sleeps, and nobody else, whatever the load and the floor.
    for (running, over, floor) in
        [(1, 0, 0), (1, 0, 1), (2, 0, 1), (3, 1, 0), (3, 0, 0), (4, 2, 0), (5, 1, 3), (3, 0, 2)]
    {
        let views = (1..=running).map(|n| up(n).limits(1, None).floor(floor)).collect();
        let mut world = World::new(views);
        let claims: Vec<_> = (0..over).map(|_| world.enter()).collect();
        let idle = |n: &u64| world.belief(*n).in_flight == 0;
        let spared: Vec<_> =
            (1..=running).filter(idle).filter(|n| vetoes(&world, *n).is_empty()).collect();
        let told: Vec<_> =
            (1..=running).filter(idle).filter(|n| !vetoes(&world, *n).is_empty()).collect();
        let expected: Vec<_> = spared.iter().map(|n| format!("stop {n} run 1")).collect();
        assert_eq!(world.run_until(AFTER), expected, "{running} {over} {floor}");
        let seen: Vec<_> = world.vetoes.iter().map(|(n, _)| *n).collect();
        assert_eq!(seen, told, "each sleep that does not happen is told");
        drop(claims);
    }
}

#[test]
fn a_sleep_that_does_not_happen_is_told_once_for_each_use_with_its_reason() {
    let mut world = World::new(vec![up(1).floor(1), up(2).leased()]);
    assert_eq!(world.run_until(3 * AFTER), Vec::<String>::new());
    let floor = Veto::Floor { floor: 1, running: 1 };
    assert_eq!(world.vetoes, [(1, floor), (2, Veto::Held)]);
    world.event(waiting(0));
    assert_eq!(world.vetoes.len(), 2, "another event is no other sleep");
    let claims = [world.enter(), world.enter()];
    claims.into_iter().for_each(|claim| drop(world.leave(claim)));
    world.run_until(3 * AFTER);
    assert_eq!(world.vetoes.len(), 4, "{:?}", world.vetoes);
}

#[test]
fn what_lasts_is_said_when_asked_and_written_down_by_nobody() {
    let off = up(3).autostop(Autostop::Off);
    let mut bare = up(4);
    bare.0.services = Arc::new([]);
    let mut world = World::new(vec![up(2).cordoned(), off, bare]);
    world.run_until(2 * AFTER);
    assert_eq!(vetoes(&world, 2), [Veto::Cordoned]);
    assert_eq!(vetoes(&world, 3), [Veto::AutostopOff]);
    assert_eq!(vetoes(&world, 4), [Veto::NoServices]);
    assert_eq!(world.vetoes, []);
    world.event(Event::ServerLost);
    assert!(vetoes(&world, 2).contains(&Veto::NoServer));
}

// ---- drains and crashes -------------------------------------------------------------------------

#[test]
fn a_drain_is_answered_when_empty_or_when_its_time_is_over() {
    let mut world = World::new(vec![up(1), up(2)]);
    assert_eq!(world.event(drain(1, 1, 7)), ["drained 1 token 7 with 0"]);
    let claim = world.enter();
    assert_eq!(claim.endpoint().machine, id(2));
    assert_eq!(world.event(drain(2, 1, 8)), Vec::<String>::new());
    assert_eq!(world.leave(claim), ["drained 2 token 8 with 0"]);
    world.event(Event::Undrain { machine: id(2), run: 1 });
    let _claim = world.enter();
    world.event(drain(2, 1, 9));
    assert_eq!(world.run_until(Duration::from_secs(5)), ["drained 2 token 9 with 1"]);
    assert_eq!(world.event(drain(2, 3, 10)), ["drained 2 token 10 with 0"], "another run");
    assert_eq!(world.event(drain(5, 1, 11)), ["drained 5 token 11 with 0"], "unknown");
}

#[test]
fn without_a_server_traffic_goes_on_and_nothing_is_asked() {
    let mut world = World::new(vec![up(1), asleep(2)]);
    world.event(Event::ServerLost);
    let _claim = world.enter();
    assert_eq!(world.event(Event::Demand { port: PORT, waiting: 500 }), ["admit 80 to 1"; 500]);
    assert_eq!(world.run_until(10 * AFTER), Vec::<String>::new());
}

#[test]
fn what_was_about_to_stop_stays_closed_until_the_new_server_has_spoken() {
    let mut world = World::new(vec![up(1)]);
    assert_eq!(world.run_until(AFTER), ["stop 1 run 1"]);
    world.event(Event::ServerLost);
    assert!(!world.belief(1).open);
    assert_eq!(world.event(Event::Demand { port: PORT, waiting: 1 }), Vec::<String>::new());
    world.change(vec![up(1)]);
    assert_eq!(world.event(Event::ServerReady), ["admit 80 to 1"]);
}

#[test]
fn an_adopted_machine_keeps_its_claims_and_its_clock() {
    let mut world = World::new(vec![up(1)]);
    world.run_until(AFTER / 2);
    let quiet_since = world.belief(1).quiet_since;
    world.event(Event::ServerLost);
    world.change(vec![up(1)]);
    world.event(Event::ServerReady);
    assert_eq!(world.belief(1).quiet_since, quiet_since);
    assert_eq!(world.run_until(AFTER / 2), ["stop 1 run 1"]);
}

#[test]
fn an_unanswered_start_is_asked_again_by_the_new_server() {
    let mut world = World::new(vec![asleep(1)]);
    assert_eq!(world.event(Event::Demand { port: PORT, waiting: 1 }), ["start 1"]);
    world.event(Event::ServerLost);
    assert_eq!(world.change(vec![asleep(1)]), Vec::<String>::new());
    assert_eq!(world.event(Event::ServerReady), ["start 1"]);
}

// ---- helpers ------------------------------------------------------------------------------------

struct View(MachineView);

fn id(n: u64) -> MachineId {
    MachineId::from_low_bits(n)
}

#[test]
fn a_suspended_machine_is_thawed_by_its_own_freezer_also_without_a_server() {
    let mut world = World::new(vec![suspended(1)]);
    world.event(Event::ServerReady);
    world.event(Event::Freezer { machine: id(1), run: 1 });
    world.event(Event::ServerLost);
    assert_eq!(world.event(waiting(1)), ["thaw 1 run 1"]);
    assert_eq!(world.event(thawed(1, 1, ThawOutcome::Done)), ["admit 80 to 1"]);
    assert!(world.belief(1).open);
}

#[test]
fn without_the_freezer_of_this_run_the_server_is_asked() {
    for known in [None, Some(1), Some(3)] {
        let mut world = World::new(vec![suspended(1).run(2)]);
        world.event(Event::ServerReady);
        if let Some(run) = known {
            world.event(Event::Freezer { machine: id(1), run });
        }
        assert_eq!(world.event(waiting(1)), ["start 1"], "{known:?}");
    }
}

#[test]
fn what_is_still_suspending_is_not_thawed_behind_the_servers_back() {
    let mut world = World::new(vec![up(1).autostop(Autostop::Suspend)]);
    world.event(Event::ServerReady);
    world.event(Event::Freezer { machine: id(1), run: 1 });
    world.change(vec![up(1).autostop(Autostop::Suspend).state(MachineState::Suspending)]);
    assert_eq!(world.event(waiting(1)), ["start 1"]);
}

#[test]
fn a_thaw_that_fails_is_a_start_of_the_server() {
    let mut world = World::new(vec![suspended(1)]);
    world.event(Event::ServerReady);
    world.event(Event::Freezer { machine: id(1), run: 1 });
    assert_eq!(world.event(waiting(1)), ["thaw 1 run 1"]);
    assert_eq!(world.event(thawed(1, 1, ThawOutcome::Failed)), ["start 1"]);
}

#[test]
fn a_resting_connection_is_no_load_and_going_on_wakes_its_own_machine() {
    let napping = |state| up(1).autostop(Autostop::Suspend).state(state);
    let mut world = World::new(vec![napping(MachineState::Started)]);
    world.event(Event::ServerReady);
    world.event(Event::Freezer { machine: id(1), run: 1 });
    let claim = world.enter();
    assert!(claim.endpoint().naps.is_some());
    let edge = claim.park();
    world.edge(edge);
    assert_eq!(world.run_until(Duration::from_secs(3600)), ["stop 1 run 1"]);
    assert!(claim.unpark(Origin::Caller).is_err());
    world.change(vec![napping(MachineState::Suspended)]);
    let recall = recall(1, Origin::Caller);
    assert_eq!(world.event(recall), ["thaw 1 run 1"]);
    assert_eq!(world.event(thawed(1, 2, ThawOutcome::Done)), ["recalled 1"]);
    let edge = claim.go_on(Origin::Caller).expect("the same run");
    world.edge(edge);
    assert_eq!(world.belief(1).in_flight, 1);
}

/// A suspended Machine, woken for what its only connection has to say.
fn woken_for(origin: Origin) -> (World, Claim) {
    let napping = |state| up(1).autostop(Autostop::Suspend).state(state);
    let mut world = World::new(vec![napping(MachineState::Started)]);
    world.event(Event::ServerReady);
    world.event(Event::Freezer { machine: id(1), run: 1 });
    let claim = world.enter();
    let edge = claim.park();
    world.edge(edge);
    assert_eq!(world.run_until(Duration::from_secs(3600)), ["stop 1 run 1"]);
    world.change(vec![napping(MachineState::Suspended)]);
    assert_eq!(world.event(recall(1, origin)), ["thaw 1 run 1"]);
    assert_eq!(world.event(thawed(1, 2, ThawOutcome::Done)), ["recalled 1"]);
    let edge = claim.go_on(origin).expect("the same run");
    world.edge(edge);
    let done = started(1, 2, 1);
    assert_eq!(world.event(done), Vec::<String>::new());
    (world, claim)
}

#[test]
fn a_machine_that_was_woken_by_a_heartbeat_sleeps_again_when_that_is_over() {
    let (mut world, claim) = woken_for(Origin::Heartbeat);
    let quiet_since = world.belief(1).quiet_since;
    assert_eq!(world.run_until(GRACE), Vec::<String>::new(), "its answer is owed");
    let edge = claim.park();
    world.edge(edge);
    assert_eq!(world.log(), ["stop 1 run 1"]);
    assert_eq!(world.belief(1).quiet_since, quiet_since);
}

#[test]
fn it_is_awake_for_a_moment_also_before_the_heartbeat_is_passed_on() {
    let (mut world, claim) = woken_for(Origin::Heartbeat);
    let edge = claim.park();
    world.edge(edge);
    let almost = GRACE - Duration::from_micros(1);
    assert_eq!(world.run_until(almost), Vec::<String>::new());
    assert_eq!(world.run_until(Duration::from_micros(1)), ["stop 1 run 1"]);
}

#[test]
fn what_is_no_heartbeat_keeps_a_machine_awake_as_ever() {
    let (mut world, claim) = woken_for(Origin::Caller);
    world.run_until(GRACE);
    let edge = claim.park();
    world.edge(edge);
    assert_eq!(world.run_until(AFTER - Duration::from_micros(1)), Vec::<String>::new());
    assert_eq!(world.run_until(Duration::from_micros(1)), ["stop 1 run 1"]);
}

#[test]
fn a_heartbeat_that_turns_out_to_be_more_keeps_it_awake_too() {
    let (mut world, claim) = woken_for(Origin::Heartbeat);
    claim.note_use();
    world.run_until(GRACE);
    let edge = claim.park();
    world.edge(edge);
    assert_eq!(world.run_until(AFTER - Duration::from_micros(1)), Vec::<String>::new());
    assert_eq!(world.run_until(Duration::from_micros(1)), ["stop 1 run 1"]);
}

#[test]
fn a_request_that_waits_beside_a_heartbeat_is_not_forgotten() {
    for origins in [[Origin::Caller, Origin::Heartbeat], [Origin::Heartbeat, Origin::Caller]] {
        let napping = |state| up(1).autostop(Autostop::Suspend).state(state);
        let mut world = World::new(vec![napping(MachineState::Started)]);
        world.event(Event::ServerReady);
        world.event(Event::Freezer { machine: id(1), run: 1 });
        world.run_until(Duration::from_secs(3600));
        world.event(Event::ServerLost);
        world.change(vec![napping(MachineState::Suspending)]);
        for origin in origins {
            assert_eq!(world.event(recall(1, origin)), Vec::<String>::new());
        }
        world.change(vec![napping(MachineState::Suspended)]);
        world.event(thawed(1, 2, ThawOutcome::Done));
        assert_eq!(world.belief(1).quiet_since, world.now, "{origins:?}");
    }
}

#[test]
fn who_is_recalled_from_a_run_that_ended_is_told() {
    let mut world = World::new(vec![up(1).autostop(Autostop::Suspend)]);
    let claim = world.enter();
    world.change(vec![asleep(1).autostop(Autostop::Suspend).run(2)]);
    assert_eq!(world.event(recall(1, Origin::Caller)), ["recalled 1"]);
    assert_eq!(world.event(recall(7, Origin::Caller)), ["recalled 7"]);
    assert!(claim.release().is_some());
}

#[test]
fn who_rests_in_a_machine_that_was_drained_waits_for_what_the_server_does_with_it() {
    let mut world = World::new(vec![up(1).autostop(Autostop::Suspend)]);
    world.event(Event::ServerReady);
    let edge = world.enter().park();
    world.edge(edge);
    assert_eq!(world.event(drain(1, 1, 7)), ["drained 1 token 7 with 0"]);
    assert_eq!(world.event(recall(1, Origin::Caller)), Vec::<String>::new(), "it may be frozen");
    assert_eq!(world.event(Event::Undrain { machine: id(1), run: 1 }), ["recalled 1"]);
}

#[test]
fn who_waits_for_a_machine_that_vanishes_is_told() {
    let napping = |state| up(1).autostop(Autostop::Suspend).state(state);
    let mut world = World::new(vec![napping(MachineState::Started)]);
    let claim = world.enter();
    let edge = claim.park();
    world.edge(edge);
    world.change(vec![napping(MachineState::Suspended)]);
    world.event(Event::ServerLost);
    let recall = recall(1, Origin::Caller);
    assert_eq!(world.event(recall), Vec::<String>::new(), "nobody can wake it");
    assert_eq!(world.change(Vec::new()), ["recalled 1"]);
    assert!(claim.go_on(Origin::Caller).is_ok(), "its end comes from the Machine's side");
}

#[test]
fn where_resting_connections_have_all_places_one_more_machine_wakes() {
    for (soft, hard) in [(2, 2), (1, 2)] {
        let machine =
            |n, state| up(n).autostop(Autostop::Suspend).limits(soft, Some(hard)).state(state);
        let asleep = |n| machine(n, MachineState::Suspended);
        let mut world = World::new(vec![machine(1, MachineState::Started), asleep(2), asleep(3)]);
        for _ in 0..hard {
            let edge = world.enter().park();
            world.edge(edge);
        }
        assert!(matches!(world.choose(), Choice::Hold(HoldReason::Full)));
        assert_eq!(world.event(waiting(1)), ["start 2"], "AS-85, {soft} of {hard}");
    }
}

#[test]
fn a_frozen_machine_whose_places_are_all_taken_by_resting_connections_is_woken_last() {
    for (state, region) in [
        (MachineState::Stopped, "lcl"),
        (MachineState::Stopping, "lcl"),
        (MachineState::Stopped, "fra"),
    ] {
        let napping = |n| up(n).autostop(Autostop::Suspend).limits(1, Some(1));
        let other = || napping(2).state(state).region(region);
        let mut world = World::new(vec![napping(1), other()]);
        let claim = world.enter();
        let edge = claim.park();
        world.edge(edge);
        world.change(vec![napping(1).state(MachineState::Suspended), other()]);
        assert_eq!(world.event(waiting(1)), ["start 2"], "{state:?} {region}");
        assert_eq!(world.event(waiting(1)), Vec::<String>::new(), "{state:?} {region}");
        // Who rested leaves, and there is room.
        let mut log = world.leave(claim);
        log.extend(world.event(waiting(2)));
        assert_eq!(log, ["start 1"], "{state:?} {region}");
    }
}

#[test]
fn old_news_does_not_close_what_was_thawed_until_the_server_has_heard_of_it() {
    let mut world = World::new(vec![suspended(1)]);
    world.event(Event::ServerReady);
    world.event(Event::Freezer { machine: id(1), run: 1 });
    world.event(waiting(1));
    world.event(thawed(1, 1, ThawOutcome::Done));
    world.change(vec![suspended(1)]);
    assert!(world.belief(1).open);
    world.event(started(1, 1, 1));
    let claim = world.admitted.pop().expect("one is inside");
    world.leave(claim);
    world.change(vec![suspended(1)]);
    assert!(!world.belief(1).open);
    assert_eq!(world.event(waiting(1)), ["thaw 1 run 1"]);
}

// ---- health -------------------------------------------------------------------------------------

#[test]
fn nobody_comes_where_a_check_fails_until_it_passes_again() {
    let mut world = World::new(vec![up(1).checked(), up(2).checked()]);
    world.event(checked(1, 1, Status::Passing));
    world.event(checked(2, 1, Status::Passing));
    world.event(checked(1, 1, Status::Critical));
    for _ in 0..4 {
        assert_eq!(world.enter().endpoint().machine, id(2), "PX-66");
    }
    world.event(checked(1, 1, Status::Passing));
    assert_eq!(world.enter().endpoint().machine, id(1));
}

#[test]
fn who_finds_none_that_passes_waits_and_enters_with_the_first_pass() {
    let mut world = World::new(vec![up(1).checked()]);
    assert!(matches!(world.choose(), Choice::Hold(HoldReason::Wake)), "PX-64");
    assert!(world.balancer.is_unfit(PORT));
    assert_eq!(world.event(waiting(2)), Vec::<String>::new());
    assert_eq!(world.event(checked(1, 1, Status::Critical)), Vec::<String>::new());
    let entered = world.event(checked(1, 1, Status::Passing));
    assert_eq!(entered, ["admit 80 to 1", "admit 80 to 1"]);
}

#[test]
fn a_sleeper_is_woken_in_place_of_one_that_fails_and_not_while_one_has_just_come_up() {
    let mut world = World::new(vec![up(1).checked(), asleep(2).checked()]);
    assert_eq!(world.event(waiting(1)), Vec::<String>::new(), "AS-76: it may pass yet");
    assert_eq!(world.event(checked(1, 1, Status::Critical)), ["start 2"]);
}

#[test]
fn a_new_run_has_to_pass_anew_and_a_resumed_one_does_not() {
    let mut world = World::new(vec![up(1).checked()]);
    world.event(checked(1, 1, Status::Passing));
    world.change(vec![suspended(1).checked()]);
    world.change(vec![up(1).checked()]);
    let claim = world.enter();
    world.leave(claim);
    world.change(vec![up(1).checked().run(2)]);
    assert!(matches!(world.choose(), Choice::Hold(HoldReason::Wake)));
    world.event(checked(1, 1, Status::Passing));
    assert!(matches!(world.choose(), Choice::Hold(HoldReason::Wake)), "of the run before");
    world.event(checked(1, 2, Status::Passing));
    let _inside = world.enter();
}

#[test]
fn one_that_fails_sleeps_first_but_not_while_somebody_waits_for_it() {
    let mut world = World::new(vec![up(1).checked(), up(2).checked()]);
    world.event(checked(1, 1, Status::Passing));
    world.event(checked(2, 1, Status::Critical));
    assert_eq!(world.run_until(AFTER)[..1], ["stop 2 run 1"]);
    let mut world = World::new(vec![up(1).checked()]);
    world.event(waiting(1));
    assert_eq!(world.run_until(3 * AFTER), Vec::<String>::new());
    assert_eq!(world.event(waiting(0)), ["stop 1 run 1"]);
}

#[test]
fn who_passed_when_it_was_frozen_is_thawed_before_others() {
    let mut world = World::new(vec![up(1).checked(), up(2).checked()]);
    world.event(checked(1, 1, Status::Critical));
    world.event(checked(2, 1, Status::Passing));
    world.change(vec![up(1).checked(), suspended(2).checked()]);
    world.change(vec![suspended(1).checked(), suspended(2).checked()]);
    assert_eq!(world.event(waiting(1)), ["start 2"]);
}

#[test]
fn nobody_looks_at_what_sleeps_or_is_about_to() {
    let mut world = World::new(vec![up(1).checked(), suspended(2).checked()]);
    assert_eq!(world.balancer.checkable(id(1)), Some(1));
    assert_eq!(world.balancer.checkable(id(2)), None);
    world.event(drain(1, 1, 7));
    assert_eq!(world.balancer.checkable(id(1)), None);
}

fn checked(n: u64, run: u64, status: Status) -> Event {
    Event::Checked { machine: id(n), run, service: 0, status }
}

fn up(n: u64) -> View {
    let service = ServiceSpec {
        transport: Transport::Tcp,
        internal_port: 8080,
        ports: vec![PortSpec { start: 80, end: 80, handlers: Vec::new(), force_https: false }],
        autostop: Autostop::Stop,
        autostart: Autostart::On,
        min_machines_running: 0,
        concurrency: Concurrency { unit: Unit::Requests, soft_limit: 20, hard_limit: None },
        auto_stop_after: AFTER,
        start_timeout: Duration::from_secs(60),
        checks: Arc::default(),
    };
    View(MachineView {
        id: id(n),
        run: 1,
        state: MachineState::Started,
        region: Region::LOCAL,
        link_ip: Ipv4Addr::new(172, 16, 0, n as u8 * 2 + 1),
        config_version: 1,
        cordoned: false,
        leased: false,
        primary: true,
        services: [service].into(),
    })
}

/// The first service, to be changed.
fn service(view: &mut MachineView) -> &mut ServiceSpec {
    &mut Arc::get_mut(&mut view.services).expect("nobody shares it")[0]
}

/// The shell's answer to the thaw with this attempt.
fn thawed(n: u64, attempt: u64, outcome: ThawOutcome) -> Event {
    Event::Thawed { machine: id(n), attempt, outcome }
}

fn waiting(waiting: usize) -> Event {
    Event::Demand { port: PORT, waiting }
}

fn suspended(n: u64) -> View {
    up(n).state(MachineState::Suspended)
}

fn asleep(n: u64) -> View {
    up(n).state(MachineState::Stopped)
}

impl View {
    fn with(mut self, change: impl FnOnce(&mut MachineView)) -> Self {
        change(&mut self.0);
        self
    }
    fn state(self, state: MachineState) -> Self {
        self.with(|v| v.state = state)
    }
    fn run(self, run: u64) -> Self {
        self.with(|v| v.run = run)
    }
    /// Its service has a check.
    fn checked(self) -> Self {
        let second = Duration::from_secs(1);
        let times = Times { interval: second, timeout: second, grace: second };
        let check = CheckSpec { name: "alive".to_owned(), port: 8080, kind: CheckKind::Tcp, times };
        self.with(|v| service(v).checks = [check].into())
    }
    fn region(self, region: &str) -> Self {
        self.with(|v| v.region = region.parse().expect("valid"))
    }
    fn elsewhere(self) -> Self {
        self.with(|v| v.primary = false)
    }
    fn cordoned(self) -> Self {
        self.with(|v| v.cordoned = true)
    }
    fn leased(self) -> Self {
        self.with(|v| v.leased = true)
    }
    fn limits(self, soft: u32, hard: Option<u32>) -> Self {
        self.with(|v| {
            service(v).concurrency.soft_limit = soft;
            service(v).concurrency.hard_limit = hard;
        })
    }
    fn floor(self, floor: u32) -> Self {
        self.with(|v| service(v).min_machines_running = floor)
    }
    fn autostop(self, autostop: Autostop) -> Self {
        self.with(|v| service(v).autostop = autostop)
    }
    fn autostart(self, autostart: Autostart) -> Self {
        self.with(|v| service(v).autostart = autostart)
    }
}

fn started(n: u64, attempt: u64, run: u64) -> Event {
    Event::StartDone { machine: id(n), attempt, outcome: StartOutcome::Started { run } }
}

fn failed(n: u64, attempt: u64) -> Event {
    let outcome = StartOutcome::Failed { reason: "no such program".to_owned() };
    Event::StartDone { machine: id(n), attempt, outcome }
}

fn recall(n: u64, origin: Origin) -> Event {
    Event::Recall { machine: id(n), run: 1, origin }
}

fn drain(n: u64, run: u64, token: u64) -> Event {
    Event::Drain { machine: id(n), run, token, timeout: Duration::from_secs(5) }
}

struct World {
    balancer: Balancer,
    now: Timestamp,
    /// Of all its wishes, in their order.
    attempts: Vec<u64>,
    log: Vec<String>,
    vetoes: Vec<(u64, Veto)>,
    admitted: Vec<Claim>,
}

impl World {
    fn new(machines: Vec<View>) -> Self {
        let settings = Settings { region: Region::LOCAL };
        let now = Timestamp::from_micros(1);
        let balancer = Balancer::new(settings);
        let (attempts, log) = (Vec::new(), Vec::new());
        let (vetoes, admitted) = (Vec::new(), Vec::new());
        let mut world = Self { balancer, now, attempts, log, vetoes, admitted };
        world.change(machines);
        world
    }

    fn change(&mut self, machines: Vec<View>) -> Vec<String> {
        self.event(Event::PoolChanged(machines.into_iter().map(|v| v.0).collect()))
    }

    /// Takes in an event; an answer is to its so-manieth wish, from 1.
    fn event(&mut self, mut event: Event) -> Vec<String> {
        if let Event::StartDone { attempt, .. }
        | Event::StopDone { attempt, .. }
        | Event::Thawed { attempt, .. } = &mut event
        {
            *attempt = self.attempts[*attempt as usize - 1];
        }
        self.balancer.handle_event(event, self.now);
        self.drain_effects();
        self.log()
    }

    fn edge(&mut self, edge: Option<Edge>) {
        if let Some(edge) = edge {
            self.balancer.handle_event(Event::Edge(edge), self.now);
            self.drain_effects();
        }
    }

    fn choose(&self) -> Choice {
        self.balancer.choose(PORT, Origin::Caller, 0)
    }

    fn enter(&mut self) -> Claim {
        let Choice::Admitted(admission) = self.choose() else { panic!("nobody takes it") };
        self.edge(admission.edge);
        admission.claim
    }

    fn leave(&mut self, claim: Claim) -> Vec<String> {
        let edge = claim.release();
        self.edge(edge);
        self.log()
    }

    /// Lets `length` pass, timers included.
    fn run_until(&mut self, length: Duration) -> Vec<String> {
        let end = self.now + length;
        while let Some((at, _)) = self.balancer.poll_timeout().filter(|(at, _)| *at <= end) {
            assert!(self.now < at, "a timer must lie in the future");
            self.now = at;
            self.balancer.handle_timeout(at);
            self.drain_effects();
        }
        self.now = end;
        self.log()
    }

    fn drain_effects(&mut self) {
        while let Some(effect) = self.balancer.poll_effect() {
            if let Effect::Start { attempt, .. }
            | Effect::Thaw { attempt, .. }
            | Effect::Stop { attempt, .. } = effect
            {
                self.attempts.push(attempt);
            }
            self.log.push(match effect {
                Effect::Vetoed { machine, veto, .. } => {
                    self.vetoes.push((machine.as_u64(), veto));
                    continue;
                }
                Effect::Start { machine, .. } => format!("start {}", machine.as_u64()),
                Effect::Thaw { machine, run, .. } => format!("thaw {} run {run}", machine.as_u64()),
                Effect::Stop { machine, run, .. } => format!("stop {} run {run}", machine.as_u64()),
                Effect::Admit { port, claim } => {
                    let machine = claim.endpoint().machine.as_u64();
                    self.admitted.push(claim);
                    format!("admit {port} to {machine}")
                }
                Effect::AdmitAimed { port, claim } => {
                    let machine = claim.endpoint().machine.as_u64();
                    self.admitted.push(claim);
                    format!("admit aimed {port} to {machine}")
                }
                Effect::FailAimed { machine, waiters, .. } => {
                    format!("fail {waiters} for {}", machine.as_u64())
                }
                Effect::Recalled { machine } => format!("recalled {}", machine.as_u64()),
                Effect::Fail { port, waiters, .. } => format!("fail {waiters} of {port}"),
                Effect::Drained { machine, token, in_flight } => {
                    format!("drained {} token {token} with {in_flight}", machine.as_u64())
                }
            });
        }
    }

    fn log(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }

    fn belief(&self, n: u64) -> Belief {
        self.balancer.belief(id(n)).expect("known")
    }
}

// ---- certain Machines ----------------------------------------------------------------------------

impl World {
    fn choose_one(&self, n: u64) -> AimedChoice {
        let target = Target { among: Among::Machine(id(n)), except: None };
        self.balancer.choose_among(PORT, Origin::Caller, 0, target, self.now)
    }
}

fn aimed(n: u64, waiting: usize) -> Event {
    Event::Aimed { port: PORT, machine: id(n), waiting, own: 0 }
}

#[test]
fn a_caller_for_one_machine_wakes_that_one_and_enters_it_first() {
    let mut world = World::new(vec![up(1), asleep(2), suspended(3)]);
    let AimedChoice::Hold { machine, reason } = world.choose_one(2) else { panic!("it sleeps") };
    assert_eq!((machine, reason), (id(2), HoldReason::Wake), "AS-80");
    assert_eq!(world.event(aimed(2, 2)), ["start 2"], "not the suspended one");
    assert_eq!(world.event(aimed(2, 1)), Vec::<String>::new(), "nor a second time");
    assert_eq!(world.event(started(2, 1, 2)), ["admit aimed 80 to 2"]);
    assert!(matches!(world.choose_one(2), AimedChoice::Admitted(_)));
}

#[test]
fn a_caller_for_one_machine_hears_at_once_that_it_will_not_come() {
    let mut world = World::new(vec![up(1), asleep(2), asleep(3).autostart(Autostart::Off)]);
    assert!(matches!(world.choose_one(3), AimedChoice::Refuse), "AS-73");
    assert!(matches!(world.choose_one(4), AimedChoice::Refuse));
    world.event(aimed(2, 1));
    assert_eq!(world.event(failed(2, 1)), ["fail 1 for 2"]);
    assert_eq!(world.event(aimed(2, 1)), ["fail 1 for 2"], "it rests");
    let restarted = world.run_until(Duration::from_secs(2));
    assert_eq!(restarted, Vec::<String>::new(), "nobody waits any more");
    assert_eq!(world.event(aimed(2, 1)), ["start 2"]);
    assert_eq!(world.change(vec![up(1)]), ["fail 1 for 2"], "it is gone");
}

#[test]
fn a_caller_for_a_full_machine_waits_for_a_place_in_it() {
    let mut world = World::new(vec![up(1).limits(1, Some(1)), up(2)]);
    let AimedChoice::Admitted(inside) = world.choose_one(1) else { panic!("it is empty") };
    world.edge(inside.edge);
    let AimedChoice::Hold { machine, reason } = world.choose_one(1) else { panic!("it is full") };
    assert_eq!((machine, reason), (id(1), HoldReason::Full));
    assert_eq!(world.event(aimed(1, 1)), Vec::<String>::new());
    assert_eq!(world.leave(inside.claim), ["admit aimed 80 to 1"]);
}

#[test]
fn places_that_become_free_go_to_both_queues_by_turns() {
    let mut world = World::new(vec![up(1).limits(1, Some(1))]);
    let inside = world.enter();
    world.event(Event::Demand { port: PORT, waiting: 2 });
    world.event(aimed(1, 2));
    let mut entered = world.leave(inside);
    while let Some(claim) = world.admitted.pop() {
        entered.extend(world.leave(claim));
    }
    let [plain, wanted] = ["admit 80 to 1", "admit aimed 80 to 1"];
    assert_eq!(entered, [wanted, plain, wanted, plain]);
}

#[test]
fn whoever_may_go_to_all_machines_of_a_port_waits_for_none_of_them() {
    let world = World::new(vec![up(1), asleep(2)]);
    let target = |among| Target { among, except: None };
    let home = Among::Area(Area::Region(Region::LOCAL));
    assert!(world.balancer.allows_all(PORT, target(home)));
    assert!(!world.balancer.allows_all(PORT, target(Among::Machine(id(1)))));
    assert!(
        !world.balancer.allows_all(PublishedPort::tcp(81), target(Among::All)),
        "nobody serves it"
    );
    assert!(!world.balancer.allows_all(PORT, Target { among: home, except: Some(id(2)) }));
}

#[test]
fn a_machine_that_is_drained_as_one_too_many_is_put_back_for_who_wants_it() {
    let mut world = World::new(vec![up(1), up(2)]);
    let AimedChoice::Admitted(long) = world.choose_one(1) else { panic!("it is up") };
    world.edge(long.edge);
    let AimedChoice::Admitted(other) = world.choose_one(2) else { panic!("it is up") };
    world.edge(other.edge);
    world.run_until(Duration::from_secs(61));
    let drained = [1, 2].into_iter().find(|n| !world.belief(*n).open).expect("one is too many");
    assert!(matches!(world.choose_one(drained), AimedChoice::Hold { .. }));
    assert_eq!(world.event(aimed(drained, 1)), [format!("admit aimed 80 to {drained}")]);
}

#[test]
fn a_sleeper_is_woken_for_those_who_want_it_only_while_somebody_can() {
    let mut world = World::new(vec![asleep(1)]);
    world.event(Event::ServerLost);
    assert_eq!(world.event(aimed(1, 1)), Vec::<String>::new());
    assert_eq!(world.event(Event::ServerReady), ["start 1"]);
}

#[test]
fn a_call_of_the_same_pool_that_waited_for_one_machine_does_not_restart_the_clock() {
    for (own, stops) in [(1, vec!["stop 1 run 1"]), (0, vec![])] {
        let mut world = World::new(vec![up(1).limits(1, Some(1))]);
        let inside = world.enter();
        world.run_until(Duration::from_secs(1));
        world.event(Event::Aimed { port: PORT, machine: id(1), waiting: 1, own });
        assert_eq!(world.leave(inside), ["admit aimed 80 to 1"]);
        let held = world.admitted.pop().expect("it was admitted");
        assert_eq!(world.run_until(AFTER), Vec::<String>::new(), "load is load");
        assert_eq!(world.leave(held), stops, "AS-23");
    }
}

#[test]
fn who_waits_for_one_machine_is_let_in_beside_others_whoever_came_last() {
    let mut world = World::new(vec![asleep(1).limits(1, Some(1)), asleep(2)]);
    assert_eq!(world.event(aimed(1, 1)), ["start 1"]);
    assert_eq!(world.event(started(1, 1, 2)), ["admit aimed 80 to 1"]);
    assert_eq!(world.event(waiting(1)), ["start 2"]);
    world.event(aimed(2, 1));
    assert_eq!(world.event(started(2, 2, 2)), ["admit aimed 80 to 2", "admit 80 to 2"]);
}

#[test]
fn two_full_machines_that_free_their_places_by_turns_starve_nobody() {
    let limited = |m: View| m.limits(1, Some(1));
    let mut world = World::new(vec![limited(up(1)), limited(up(2))]);
    let mut inside = [world.enter(), world.enter()];
    world.event(aimed(1, 4));
    world.event(aimed(2, 4));
    world.event(waiting(8));
    let mut let_in = Vec::new();
    for turn in 0..8 {
        let [next, other] = inside;
        let_in.extend(world.leave(next));
        inside = [other, world.admitted.pop().expect("a place is free")];
        assert_eq!(let_in.len(), turn + 1);
    }
    for machine in [1, 2] {
        let wanted = format!("admit aimed 80 to {machine}");
        assert_eq!(let_in.iter().filter(|it| **it == wanted).count(), 2, "{let_in:?}");
    }
}

#[test]
fn who_waits_for_a_drained_machine_to_pass_keeps_it_awake() {
    let mut world = World::new(vec![up(1).checked(), up(2).checked()]);
    world.event(checked(1, 1, Status::Passing));
    world.event(checked(2, 1, Status::Passing));
    let mut inside = vec![world.enter(), world.enter()];
    world.run_until(AFTER + Duration::from_secs(1));
    let drained = if world.belief(1).open { 2 } else { 1 };
    inside.retain(|claim| claim.endpoint().machine == id(drained));
    let left = inside.pop().expect("one is in each");
    world.event(checked(1, 1, Status::Critical));
    world.event(checked(2, 1, Status::Critical));
    world.event(waiting(1));
    assert_eq!(world.leave(left), Vec::<String>::new());
    assert!(world.belief(drained).open, "back in rotation");
}

#[test]
fn an_update_that_ends_a_young_run_is_no_failure_of_it() {
    let mut world = World::new(vec![up(1)]);
    let _inside = world.enter();
    world.change(vec![View(MachineView {
        state: MachineState::Stopping,
        config_version: 2,
        ..up(1).0
    })]);
    assert_eq!(world.event(aimed(1, 1)), ["start 1"], "not `fail 1 for 1`");
}
