use super::*;

const POLICY: Policy = Policy {
    kill_signal: 2,
    kill_timeout: Duration::from_secs(5),
    drain_timeout: Duration::from_secs(10),
    restart: RestartPolicy::OnFailure { retries_max: 10 },
    sleep: SleepBy::Stopping,
};
const SUSPENDING: Policy = Policy { sleep: SleepBy::Suspending, ..POLICY };
const CLEAN: Exit = Exit { code: 0, signal: None, oom_killed: false };
const CRASH: Exit = Exit { code: 1, signal: None, oom_killed: false };
const RESTART: Event = Event::Restart { signal: None, timeout: None };
const USER_STOP: Event = Event::Stop(StopBy::User { signal: None, timeout: None });

#[test]
fn a_wake_by_the_proxy_is_answered_when_the_run_is_up() {
    let mut world = World::new();
    assert_eq!(world.event(wake(7)), ["starting", "launch 1 config 1"]);
    assert_eq!(world.event(Event::Launched { run: 1 }), ["started", "start 7 started as 1"]);
    assert_eq!(world.event(wake(8)), ["start 8 started as 1"], "already up: answered at once");
}

#[test]
fn events_of_older_runs_are_dropped() {
    let mut world = World::up();
    world.event(proxy_stop(1, 1));
    world.event(Event::Exited { run: 1, exit: CLEAN });
    world.event(wake(2));
    for late in [
        Event::Exited { run: 1, exit: CRASH },
        Event::Launched { run: 1 },
        Event::LaunchFailed { run: 1, reason: String::new() },
        Event::Drained { token: 9 },
        Event::Removed,
    ] {
        assert_eq!(world.event(late), Vec::<String>::new());
    }
    assert_eq!(world.life.state(), MachineState::Starting);
}

#[test]
fn an_idle_machine_is_stopped_without_a_drain_and_not_restarted() {
    let mut world = World::up();
    assert_eq!(world.event(proxy_stop(1, 4)), ["signal 1 with 2", "stopping"]);
    let effects = world.event(Event::Exited { run: 1, exit: CRASH });
    assert_eq!(effects, ["stopped", "stop 4 stopped"], "AS-53: a requested stop");
}

#[test]
fn a_stop_that_meets_a_lease_or_another_run_is_refused() {
    let mut world = World::up();
    world.event(Event::Lease(Lease::Held));
    assert_eq!(world.event(proxy_stop(1, 4)), ["stop 4 refused: leased"], "MA-64");
    world.event(Event::Lease(Lease::Free));
    assert_eq!(world.event(proxy_stop(9, 5)), ["stop 5 refused: another run"]);
}

#[test]
fn a_start_during_a_stop_is_remembered() {
    let mut world = World::up();
    world.event(proxy_stop(1, 4));
    assert_eq!(world.event(wake(5)), Vec::<String>::new(), "AS-66");
    let effects = world.event(Event::Exited { run: 1, exit: CLEAN });
    assert_eq!(effects, ["stopping", "stop 4 stopped", "starting", "launch 2 config 1"]);
    assert_eq!(world.event(Event::Launched { run: 2 }), ["started", "start 5 started as 2"]);
}

#[test]
fn a_user_who_starts_while_the_stop_is_only_draining_calls_it_off() {
    let mut world = World::up();
    assert_eq!(world.event(USER_STOP), ["drain 1 token 1", "stopping"]);
    assert_eq!(world.event(Event::Start(StartBy::User)), ["undrain 1", "started"]);
    assert_eq!(world.event(Event::Drained { token: 1 }), Vec::<String>::new());
}

#[test]
fn a_restart_survives_the_server_and_a_start_does_not_call_its_stop_off() {
    let mut world = World::up();
    let signal = Event::Restart { signal: Some(9), timeout: Some(Duration::from_secs(1)) };
    assert_eq!(world.event(signal), ["drain 1 token 1", "stopping"]);
    assert_eq!(world.life.stored().wish, Wish::Up);
    assert_eq!(world.event(Event::Start(StartBy::User)), Vec::<String>::new());
    assert_eq!(world.event(Event::Drained { token: 1 }), ["signal 1 with 9"]);
    assert_eq!(world.pass(Duration::from_secs(1)), ["kill 1"]);
    let effects = world.event(Event::Exited { run: 1, exit: CRASH });
    assert_eq!(effects, ["stopping", "starting", "launch 2 config 1"]);
}

#[test]
fn a_stop_after_a_restart_wins() {
    let mut world = World::up();
    world.event(RESTART);
    world.event(USER_STOP);
    world.event(Event::Drained { token: 1 });
    assert_eq!(world.event(Event::Exited { run: 1, exit: CLEAN }), ["stopped"]);
}

#[test]
fn a_program_that_ignores_the_signal_is_killed_and_killed_again() {
    let mut world = World::up();
    world.event(USER_STOP);
    assert_eq!(world.event(Event::Drained { token: 1 }), ["signal 1 with 2"]);
    assert_eq!(world.pass(POLICY.kill_timeout), ["kill 1"]);
    assert_eq!(world.pass(KILL_AGAIN_AFTER), ["kill 1"]);
    assert_eq!(world.event(Event::Exited { run: 1, exit: CRASH }), ["stopped"]);
}

#[test]
fn a_drain_that_nobody_answers_ends_by_itself() {
    let mut world = World::up();
    world.event(USER_STOP);
    assert_eq!(world.pass(POLICY.drain_timeout), Vec::<String>::new());
    assert_eq!(world.pass(DRAIN_GRACE), ["signal 1 with 2"]);
}

#[test]
fn an_update_keeps_an_asleep_machine_asleep_and_the_next_wake_has_the_new_config() {
    let mut world = World::new();
    world.event(wake(1));
    world.event(Event::Launched { run: 1 });
    world.event(proxy_stop(1, 2));
    world.event(Event::Exited { run: 1, exit: CLEAN });
    assert_eq!(world.event(update(2, Asleep::Stays)), ["stopped"]);
    assert_eq!(world.event(wake(3)), ["starting", "launch 2 config 2"]);
}

#[test]
fn an_update_of_a_running_machine_drains_stops_and_launches_the_new_config() {
    let mut world = World::up();
    assert_eq!(world.event(update(2, Asleep::Stays)), ["drain 1 token 1", "replacing"]);
    assert_eq!(world.event(wake(6)), Vec::<String>::new(), "remembered");
    assert_eq!(world.event(Event::Drained { token: 1 }), ["signal 1 with 2"]);
    let effects = world.event(Event::Exited { run: 1, exit: CLEAN });
    assert_eq!(effects, ["replacing", "starting", "launch 2 config 2"]);
    assert_eq!(world.event(Event::Launched { run: 2 }), ["started", "start 6 started as 2"]);
}

#[test]
fn an_update_that_a_newer_one_overtakes_brings_nothing_old_back() {
    let mut world = World::up();
    let policy = Policy { restart: RestartPolicy::No, ..POLICY };
    world.event(Event::Update { config_version: 3, policy, asleep: Asleep::Launches });
    world.event(update(2, Asleep::Launches));
    assert_eq!((world.life.config_version(), world.life.policy), (3, policy));
    world.event(Event::Drained { token: 1 });
    let effects = world.event(Event::Exited { run: 1, exit: CLEAN });
    assert_eq!(effects, ["replacing", "starting", "launch 2 config 3"]);
}

#[test]
fn a_wake_that_an_update_overtakes_gets_the_new_config() {
    let mut world = World::new();
    world.event(wake(1));
    assert_eq!(world.event(update(2, Asleep::Stays)), ["kill 1", "replacing"]);
    assert_eq!(world.event(Event::Launched { run: 1 }), ["kill 1"], "the kill came too early");
    let effects = world.event(Event::Exited { run: 1, exit: CRASH });
    assert_eq!(effects, ["replacing", "starting", "launch 2 config 2"]);
    assert_eq!(world.event(Event::Launched { run: 2 }), ["started", "start 1 started as 2"]);
}

#[test]
fn a_launch_that_fails_or_never_ends_is_told_to_the_proxy() {
    let mut world = World::new();
    world.event(wake(1));
    let failed = Event::LaunchFailed { run: 1, reason: "no such program".to_owned() };
    assert_eq!(world.event(failed), ["failed", "start 1 failed: no such program"]);
    assert_eq!(world.event(wake(2)), ["starting", "launch 2 config 1"], "it may be tried again");
    let effects = world.pass(LAUNCH_TIMEOUT);
    assert_eq!(effects, ["start 2 failed: did not start within 300 s", "kill 2"]);
}

#[test]
fn a_crash_is_restarted_after_a_pause_which_a_wake_cuts_short() {
    let mut world = World::up();
    assert_eq!(world.event(Event::Exited { run: 1, exit: CRASH }), ["restarting"]);
    assert_eq!(world.pass(Duration::from_secs(1)), ["starting", "launch 2 config 1"]);
    world.event(Event::Launched { run: 2 });
    world.event(Event::Exited { run: 2, exit: CRASH });
    assert_eq!(world.event(wake(9)), ["starting", "launch 3 config 1"]);
}

#[test]
fn an_exit_that_overtakes_the_launch_report_is_seen_as_both() {
    let mut world = World::new();
    world.event(wake(1));
    let effects = world.event(Event::Exited { run: 1, exit: CLEAN });
    assert_eq!(effects, ["started", "start 1 started as 1", "stopped"], "MA-25");
}

#[test]
fn a_user_who_stops_a_starting_machine_wins_over_the_proxys_wish() {
    let mut world = World::new();
    world.event(wake(1));
    let effects = world.event(USER_STOP);
    assert_eq!(effects, ["start 1 refused: stopped by a user", "kill 1", "stopping"]);
    assert_eq!(world.event(Event::Exited { run: 1, exit: CRASH }), ["stopped"]);
}

#[test]
fn destroying_drains_stops_removes_and_refuses_everything_else() {
    let mut world = World::up();
    assert_eq!(world.event(Event::Destroy), ["drain 1 token 1", "destroying"]);
    assert_eq!(world.event(wake(1)), ["start 1 refused: the Machine is destroying"]);
    let refused = world.life.handle_event(Event::Start(StartBy::User), world.now);
    let error = refused.expect_err("MA-06");
    assert_eq!(error.to_string(), "cannot start a Machine that is destroying");
    assert!(world.life.handle_event(update(2, Asleep::Stays), world.now).is_err());
    world.event(Event::Drained { token: 1 });
    let effects = world.event(Event::Exited { run: 1, exit: CLEAN });
    assert_eq!(effects, ["destroying", "remove"]);
    assert_eq!(world.event(Event::Removed), ["destroyed"]);
    assert!(world.life.handle_event(Event::Destroy, world.now).is_err());
}

#[test]
fn adoption_is_no_start() {
    let stored = World::up().life.stored();
    let world = World::restore(stored, Found::Running { run: 1, config_version: 1 });
    assert_eq!((world.life.state(), world.life.run()), (MachineState::Started, 1));
}

#[test]
fn what_was_interrupted_is_finished() {
    let running = |config_version| Found::Running { run: 1, config_version };
    let mut updating = World::up();
    updating.event(update(2, Asleep::Stays));
    let mut world = World::restore(updating.life.stored(), running(1));
    assert_eq!(world.drain_effects(), ["drain 1 token 1", "replacing"]);
    let mut stopping = World::up();
    stopping.event(proxy_stop(1, 1));
    let mut world = World::restore(stopping.life.stored(), running(1));
    assert_eq!(world.drain_effects(), ["drain 1 token 1", "stopping"]);
    let mut waking = World::up();
    waking.event(proxy_stop(1, 1));
    waking.event(wake(2));
    let mut world = World::restore(waking.life.stored(), running(1));
    assert_eq!(
        world.drain_effects(),
        ["drain 1 token 1", "replacing"],
        "it has its signal already"
    );
    let ended = Found::Ended { run: 1, exit: CRASH };
    let world = World::restore(stopping.life.stored(), ended.clone());
    assert_eq!(world.life.state(), MachineState::Stopped);
    let mut world = World::restore(updating.life.stored(), ended.clone());
    assert_eq!(world.drain_effects(), ["replacing", "starting", "launch 2 config 2"]);
    let world = World::restore(World::up().life.stored(), ended);
    assert_eq!(world.life.state(), MachineState::Restarting, "the restart policy decides");
    let mut going = World::up();
    going.event(Event::Destroy);
    let mut world =
        World::restore(going.life.stored(), Found::Nothing { was_up: AfterLoss::Launch });
    assert_eq!(world.drain_effects(), ["remove"]);
}

#[test]
fn a_server_that_ends_in_the_middle_of_a_drain_cuts_nobody() {
    for (asked, state) in [(USER_STOP, "stopping"), (Event::Destroy, "destroying")] {
        let mut world = World::up();
        assert_eq!(world.event(asked), ["drain 1 token 1", state]);
        let running = Found::Running { run: 1, config_version: 1 };
        let mut world = World::restore(world.life.stored(), running);
        assert_eq!(world.drain_effects(), ["drain 1 token 1", state]);
        assert_eq!(world.pass(POLICY.drain_timeout), Vec::<String>::new(), "all of the time");
        assert_eq!(world.event(Event::Drained { token: 1 }), ["signal 1 with 2"]);
        assert_eq!(world.pass(POLICY.kill_timeout), ["kill 1"]);
    }
}

#[test]
fn a_start_calls_no_stop_off_whose_signal_an_earlier_server_may_have_sent() {
    let mut world = World::up();
    world.event(USER_STOP);
    let running = Found::Running { run: 1, config_version: 1 };
    let mut world = World::restore(world.life.stored(), running);
    world.drain_effects();
    assert_eq!(world.event(Event::Start(StartBy::User)), Vec::<String>::new(), "remembered");
    let effects = world.event(Event::Exited { run: 1, exit: CLEAN });
    assert_eq!(effects, ["stopping", "starting", "launch 2 config 1"]);
}

#[test]
fn what_the_proxy_did_may_be_younger_than_what_was_stored() {
    let stored =
        Stored { state: MachineState::Stopped, run: 3, config_version: 1, wish: Wish::Down };
    let world = World::restore(stored, Found::Running { run: 4, config_version: 1 });
    assert_eq!((world.life.state(), world.life.run()), (MachineState::Started, 4), "DESIGN 8");
    let launching = Stored { state: MachineState::Starting, wish: Wish::Up, ..stored };
    let mut world = World::restore(launching, Found::Ended { run: 2, exit: CRASH });
    assert_eq!(world.drain_effects(), ["starting", "launch 4 config 1"]);
}

#[test]
fn a_program_that_could_not_be_started_while_nobody_looked_is_a_failed_start() {
    let not_started = |run| Found::NotStarted { run, reason: "no /x".to_owned() };
    let mut starting = World::new();
    starting.event(wake(1));
    let world = World::restore(starting.life.stored(), not_started(1));
    assert_eq!(world.life.state(), MachineState::Failed, "the restart policy has no say");
    starting.event(USER_STOP);
    let world = World::restore(starting.life.stored(), not_started(1));
    assert_eq!(world.life.state(), MachineState::Stopped);
    let stopped = world.life.stored();
    let world = World::restore(stopped, not_started(2));
    assert_eq!(world.life.state(), MachineState::Failed, "the start is younger than the record");
    let world = World::restore(stopped, not_started(1));
    assert_eq!(world.life.state(), MachineState::Stopped);
    starting.event(Event::Destroy);
    let mut world = World::restore(starting.life.stored(), not_started(1));
    assert_eq!(world.drain_effects(), ["destroying", "remove"]);
}

#[test]
fn after_a_reboot_machines_come_back_as_the_caller_says() {
    let up = World::up().life.stored();
    let mut world = World::restore(up, Found::Nothing { was_up: AfterLoss::Launch });
    assert_eq!(world.drain_effects(), ["starting", "launch 2 config 1"]);
    let mut world = World::restore(up, Found::Nothing { was_up: AfterLoss::Sleep });
    assert_eq!(world.drain_effects(), ["stopped"], "and it is said");
    let frozen = Stored { state: MachineState::Suspended, wish: Wish::Down, ..up };
    let mut world = World::restore(frozen, Found::Nothing { was_up: AfterLoss::Launch });
    assert_eq!(world.drain_effects(), ["stopped"], "AS-105");
    let down = Stored { state: MachineState::Stopped, ..frozen };
    let mut world = World::restore(down, Found::Nothing { was_up: AfterLoss::Launch });
    assert!(world.drain_effects().is_empty(), "nothing happened to it");
}

#[test]
fn an_idle_machine_is_frozen_and_the_next_wake_goes_on_with_the_same_run() {
    let mut world = World { life: Lifecycle::new(1, SUSPENDING), now: Timestamp::ZERO };
    world.event(Event::Start(StartBy::User));
    world.event(Event::Launched { run: 1 });
    assert_eq!(world.event(proxy_stop(1, 4)), ["freeze 1 token 1", "suspending"]);
    assert_eq!(world.event(Event::Frozen { token: 1 }), ["suspended", "stop 4 suspended"]);
    assert_eq!(world.life.stored().wish, Wish::Down);
    assert_eq!(world.event(wake(5)), ["thaw 1", "started", "start 5 started as 1"]);
}

#[test]
fn a_start_during_a_suspend_calls_it_off_and_the_late_answer_is_dropped() {
    let mut world = World::up();
    world.event(Event::Suspend);
    world.event(Event::Drained { token: 1 });
    let effects = world.event(wake(5));
    assert_eq!(effects, ["thaw 1", "started", "start 5 started as 1"], "AS-56");
    assert_eq!(world.event(Event::Frozen { token: 2 }), Vec::<String>::new());
    let late = Event::FreezeFailed { token: 2, reason: String::new() };
    assert_eq!(world.event(late), Vec::<String>::new());
}

#[test]
fn a_stop_that_was_wanted_before_a_caller_came_and_comes_after_it_is_refused() {
    let mut world = World::up();
    assert_eq!(world.event(wake(5)), ["start 5 started as 1"]);
    let effects = world.event(proxy_stop(1, 4));
    assert_eq!(effects, ["stop 4 refused: a caller came meanwhile"], "AS-56");
    assert_eq!(world.event(proxy_stop(1, 6)), ["signal 1 with 2", "stopping"], "a later one");
}

#[test]
fn what_cannot_be_frozen_is_stopped_and_says_so() {
    let mut world = World::up().after([Event::Suspend, Event::Drained { token: 1 }]);
    let failed = Event::FreezeFailed { token: 2, reason: "no".to_owned() };
    assert_eq!(world.event(failed), ["signal 1 with 2", "thaw 1", "stopping"], "AS-54");
    let mut slow = World::up().after([Event::Suspend, Event::Drained { token: 1 }]);
    assert_eq!(slow.pass(FREEZE_TIMEOUT), ["signal 1 with 2", "thaw 1", "stopping"]);
}

#[test]
fn a_suspended_machine_that_is_stopped_starts_cold_the_next_time() {
    let mut world = World::suspended();
    assert_eq!(world.event(USER_STOP), ["signal 1 with 2", "thaw 1", "stopping"], "AS-106");
    assert_eq!(world.event(Event::Exited { run: 1, exit: CLEAN }), ["stopped"]);
    assert_eq!(world.event(wake(3)), ["starting", "launch 2 config 1"]);
}

#[test]
fn an_update_ends_a_suspended_run_and_keeps_the_machine_asleep() {
    let mut world = World::suspended();
    let effects = world.event(update(2, Asleep::Stays));
    assert_eq!(effects, ["signal 1 with 2", "thaw 1", "stopping"], "AS-105");
    assert_eq!(world.event(Event::Exited { run: 1, exit: CLEAN }), ["stopped"]);
    assert_eq!(world.event(wake(3)), ["starting", "launch 2 config 2"]);
}

#[test]
fn a_suspended_run_that_dies_is_a_stopped_machine() {
    let mut world = World::suspended();
    assert_eq!(world.event(Event::Exited { run: 1, exit: CRASH }), ["stopped"]);
    assert_eq!(world.event(wake(3)), ["starting", "launch 2 config 1"]);
}

#[test]
fn a_new_server_finds_a_frozen_run() {
    let suspended = World::suspended().life.stored();
    let frozen = |config_version| Found::Frozen { run: 1, config_version };
    let mut world = World::restore(suspended, frozen(1));
    assert_eq!(world.drain_effects(), ["suspended"]);
    assert_eq!(world.event(wake(3)), ["thaw 1", "started", "start 3 started as 1"]);
    let started = Stored { wish: Wish::Up, state: MachineState::Started, ..suspended };
    let mut world = World::restore(started, frozen(1));
    assert_eq!(world.drain_effects(), ["thaw 1", "started"], "a start was stored, not done");
    let updated = Stored { config_version: 2, ..suspended };
    let mut world = World::restore(updated, frozen(1));
    assert_eq!(world.drain_effects(), ["signal 1 with 2", "thaw 1", "stopping"]);
    let destroyed = Stored { wish: Wish::Gone, ..suspended };
    assert_eq!(World::restore(destroyed, frozen(1)).drain_effects(), ["kill 1", "destroying"]);
}

#[test]
fn a_new_server_finds_a_run_that_should_be_frozen_running() {
    let suspended = World::suspended().life.stored();
    let running = Found::Running { run: 1, config_version: 1 };
    let mut world = World::restore(suspended, running.clone());
    assert_eq!(world.drain_effects(), ["started"], "a wake was not stored: what runs is true");
    let suspending = Stored { state: MachineState::Suspending, ..suspended };
    let mut world = World::restore(suspending, running);
    assert_eq!(world.drain_effects(), ["drain 1 token 1", "suspending"], "it is finished");
}

#[test]
fn a_thaw_by_the_proxy_is_believed_and_finished_is_what_was_asked_for_since() {
    let mut world = World::suspended();
    assert_eq!(world.event(Event::Thawed { run: 2 }), [""; 0], "another run");
    assert_eq!(world.event(Event::Thawed { run: 1 }), ["thaw 1", "started"]);
    let suspended = World::suspended().life.stored();
    let thawed = Found::Thawed { run: 1, config_version: 1 };
    for state in [MachineState::Suspended, MachineState::Suspending] {
        let mut world = World::restore(Stored { state, ..suspended }, thawed.clone());
        assert_eq!(world.drain_effects(), ["thaw 1", "started"], "{state}");
    }
    let stopping = Stored { state: MachineState::Stopping, ..suspended };
    let mut world = World::restore(stopping, thawed);
    assert_eq!(world.drain_effects(), ["drain 1 token 1", "stopping"]);
}

#[test]
fn a_run_that_cannot_be_thawed_is_started_anew() {
    let mut world = World::suspended();
    world.event(wake(3));
    let failed = Event::ThawFailed { run: 1, reason: "no".to_owned() };
    assert_eq!(world.event(failed), ["kill 1", "stopping"], "AS-104");
    let effects = world.event(Event::Exited { run: 1, exit: CRASH });
    assert_eq!(effects, ["stopping", "starting", "launch 2 config 1"]);
}

/// Every state and every event, as a file that a reviewer sees as a difference.
#[test]
fn the_committed_table_shows_every_transition() {
    let mut table = String::new();
    for (name, make) in PHASES {
        for (event_name, event) in events() {
            let mut world = make();
            let answer = match world.life.handle_event(event, world.now) {
                Ok(()) => world.drain_effects().join(", "),
                Err(refused) => format!("412 {refused}"),
            };
            let state = world.life.state();
            let line = format!("{name:<22} {event_name:<18} {state:<10} {answer}");
            table += &format!("{}\n", line.trim_end());
        }
    }
    let committed = include_str!("transitions.txt");
    assert!(committed == table, "lifecycle/transitions.txt differs; the new one is:\n{table}");
}

type Phases = [(&'static str, fn() -> World); 19];

const PHASES: Phases = [
    ("created", World::new),
    ("starting", || World::new().after([wake(1)])),
    ("started", World::up),
    ("started, leased", || World::up().after([Event::Lease(Lease::Held)])),
    ("draining to sleep", || World::up().after([USER_STOP])),
    ("draining to wake", || World::up().after([RESTART])),
    ("draining to replace", || World::up().after([update(2, Asleep::Stays)])),
    ("draining to destroy", || World::up().after([Event::Destroy])),
    ("stopping to sleep", || World::up().after([proxy_stop(1, 2)])),
    ("stopping to wake", || World::up().after([proxy_stop(1, 2), wake(3)])),
    ("stopping to replace", || {
        World::up().after([update(2, Asleep::Stays), Event::Drained { token: 1 }])
    }),
    ("stopping to destroy", || World::up().after([Event::Destroy, Event::Drained { token: 1 }])),
    ("draining to suspend", || World::up().after([Event::Suspend])),
    ("freezing", || World::up().after([Event::Suspend, Event::Drained { token: 1 }])),
    ("suspended", World::suspended),
    ("restarting", || World::up().after([Event::Exited { run: 1, exit: CRASH }])),
    ("stopped", || World::up().after([Event::Exited { run: 1, exit: CLEAN }])),
    ("destroying", || World::new().after([Event::Destroy])),
    ("destroyed", || World::new().after([Event::Destroy, Event::Removed])),
];

fn events() -> Vec<(&'static str, Event)> {
    vec![
        ("start by user", Event::Start(StartBy::User)),
        ("start by proxy", wake(8)),
        ("stop by user", USER_STOP),
        ("stop by proxy", proxy_stop(1, 9)),
        ("update", update(3, Asleep::Stays)),
        ("update and launch", update(3, Asleep::Launches)),
        ("restart", RESTART),
        ("destroy", Event::Destroy),
        ("launched", Event::Launched { run: 1 }),
        ("launch failed", Event::LaunchFailed { run: 1, reason: "no".to_owned() }),
        ("exited clean", Event::Exited { run: 1, exit: CLEAN }),
        ("exited crashed", Event::Exited { run: 1, exit: CRASH }),
        ("drained", Event::Drained { token: 1 }),
        ("suspend", Event::Suspend),
        ("frozen", Event::Frozen { token: 2 }),
        ("freeze failed", Event::FreezeFailed { token: 2, reason: "no".to_owned() }),
        ("thaw failed", Event::ThawFailed { run: 1, reason: "no".to_owned() }),
        ("removed", Event::Removed),
    ]
}

fn wake(attempt: u64) -> Event {
    Event::Start(StartBy::Proxy { attempt })
}

fn proxy_stop(run: u64, attempt: u64) -> Event {
    Event::Stop(StopBy::Proxy { run, attempt })
}

fn update(config_version: u64, asleep: Asleep) -> Event {
    Event::Update { config_version, policy: POLICY, asleep }
}

struct World {
    life: Lifecycle,
    now: Timestamp,
}

impl World {
    fn new() -> Self {
        Self { life: Lifecycle::new(1, POLICY), now: Timestamp::ZERO }
    }

    fn up() -> Self {
        let up = [Event::Start(StartBy::User), Event::Launched { run: 1 }];
        Self::new().after(up)
    }

    fn suspended() -> Self {
        Self::up().after([Event::Suspend, Event::Drained { token: 1 }, Event::Frozen { token: 2 }])
    }

    fn restore(stored: Stored, found: Found) -> Self {
        let now = Timestamp::ZERO;
        Self { life: Lifecycle::restore(stored, POLICY, found, now), now }
    }

    fn after(mut self, events: impl IntoIterator<Item = Event>) -> Self {
        for event in events {
            self.event(event);
        }
        self
    }

    fn event(&mut self, event: Event) -> Vec<String> {
        self.life.handle_event(event, self.now).expect("makes sense in this state");
        self.drain_effects()
    }

    fn pass(&mut self, length: Duration) -> Vec<String> {
        self.now = self.now + length;
        self.life.handle_timeout(self.now);
        self.drain_effects()
    }

    fn drain_effects(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.life.poll_effect()).map(text).collect()
    }
}

fn text(effect: Effect) -> String {
    match effect {
        Effect::Announce { state, .. } => state.to_string(),
        Effect::Drain { run, token, .. } => format!("drain {run} token {token}"),
        Effect::Undrain { run } => format!("undrain {run}"),
        Effect::Launch { run, config_version } => format!("launch {run} config {config_version}"),
        Effect::Freeze { run, token } => format!("freeze {run} token {token}"),
        Effect::Thaw { run } => format!("thaw {run}"),
        Effect::Signal { run, signal } => format!("signal {run} with {signal}"),
        Effect::Kill { run } => format!("kill {run}"),
        Effect::Remove => "remove".to_owned(),
        Effect::StartDone { attempt, outcome } => match outcome {
            StartOutcome::Started { run } => format!("start {attempt} started as {run}"),
            StartOutcome::Failed { reason } => format!("start {attempt} failed: {reason}"),
            StartOutcome::Refused { reason } => format!("start {attempt} refused: {reason}"),
        },
        Effect::StopDone { attempt, outcome } => match outcome {
            StopOutcome::Stopped => format!("stop {attempt} stopped"),
            StopOutcome::Suspended => format!("stop {attempt} suspended"),
            StopOutcome::Refused { reason } => format!("stop {attempt} refused: {reason}"),
        },
    }
}
