//! The same for the memory of those who sleep: the steps on its way to swap, and back with the next request.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Shared, wait_until};
use tempfile::TempDir;

use super::others::try_others;
use super::{Step, all_steps, armed, await_passed, check_true, lowers, walk};
use crate::limits::{Group, only};
use crate::memory::{check_awake_rank, check_rank, holder_of, make_swap, wait_paged_out};
use crate::stage::{SOON, check_answer, machine_processes, on};

const PAGING: &str = "auto_stop_after = \"200ms\"\npage_out_after = \"100ms\"\narmed_max = 0\n";
/// More than one call moves.
const HELD_MB: u64 = 5;
/// More than a Machine has left when it was paged out.
const MANY_MB: u64 = 40;
/// A sleeper's rank among the kernel's choices.
const SLEEPER: i32 = 999;

#[test]
fn whoever_ends_at_whatever_step_of_paging_sleepers_wake_as_they_were() {
    let Ok(faults) = tempfile::Builder::new().prefix("perch-faults-").tempdir() else {
        panic!("no directory");
    };
    on(|| with_swap(&faults), |host| walk(host, faults.path(), Step::is_of_paging));
}

#[test]
fn who_stands_by_at_a_step_of_a_page_out_and_ends_leaves_no_machine_lost_or_doubled() {
    let Ok(faults) = tempfile::Builder::new().prefix("perch-faults-").tempdir() else {
        panic!("no directory");
    };
    on(|| with_swap(&faults), |host| try_others(host, faults.path(), &["page-out"]));
}

#[test]
fn whoever_wakes_before_a_server_is_back_that_ended_making_room_has_the_memory_it_needs() {
    let Ok(faults) = tempfile::Builder::new().prefix("perch-faults-").tempdir() else {
        panic!("no directory");
    };
    on(
        || with_swap(&faults),
        |host| {
            let Some(steps) = all_steps(host)? else { return Ok(()) };
            // While the limit is low, where there is a process that lowers it.
            let name = if lowers() { "reclaim.lowered" } else { "server.room-made" };
            let step = steps.iter().find(|step| step.name == name).context("no such step")?;
            let step = Step { who: "server".to_owned(), ..step.clone() };
            let (address, held) = holder_of(host, "quotes", MANY_MB)?;
            wait_paged_out(host, "quotes")?;
            let awake = Shape::of(host, "quotes")?;
            let victim = step.lay(host, faults.path(), "quotes")?;
            // Sleeps again after this, and makes room.
            check_answer(&host.get(&address, 80, "/held")?, &held)?;
            await_passed(&faults.path().join(&step.name), victim)?;
            host.await_server_end()?;
            check_answer(&host.get(&address, 80, "/held")?, &held)?;
            host.start_server()?;
            check_answer(&host.get(&address, 80, "/held")?, &held)?;
            let now = Shape::of(host, "quotes")?;
            ensure!(now.pids == awake.pids, "{now:?}, and it was {awake:?}");
            Ok(())
        },
    );
}

/// A host whose sleepers soon go to swap.
fn with_swap(faults: &TempDir) -> Result<Host> {
    let mut host = armed(faults, PAGING)?;
    host.take_turn(Shared::Swap)?;
    make_swap(&host)?;
    Ok(host)
}

pub(super) fn try_step(host: &mut Host, faults: &Path, step: &Step, app: &str) -> Result<()> {
    let (address, held) = holder_of(host, app, HELD_MB)?;
    let awake = Shape::of(host, app)?;
    // Who is woken for the step has slept before it, so that what is found is nobody's first time.
    let id = wait_paged_out(host, app)?.id;
    let file = faults.join(&step.name);
    let victim = step.lay(host, faults, app)?;
    let goes_to_sleep = step.during == "page-out";
    // All that is held must go to swap anew; or little is needed, so that the rest is still there, and until a server is
    // back: it is not the next sleep that makes good what a wake left undone.
    let path = if goes_to_sleep { "/held" } else { "/sleep?ms=1500" };
    let mut call = host.command("curl", &["-gsSm65", &format!("http://[{address}]{path}")]);
    let mut call = call.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    await_passed(&file, victim)?;
    let is_of_server = step.who == "server";
    // Without one of these it is still the same Machine.
    let is_beside = ["server", "proxy", "reclaim"].contains(&step.who.as_str());
    if is_of_server {
        host.await_server_end()?;
        host.start_server()?;
    }
    if is_beside && goes_to_sleep {
        check_rank(host, &wait_paged_out(host, app)?.id, SLEEPER)?;
    } else if is_of_server {
        check_rank(host, &id, 0)?;
        wait_until("its limit of swap to be as it was", SOON, || {
            let now = Shape::of(host, app)?;
            ensure!(now == awake, "{now:?}, and it was {awake:?}");
            Ok(Some(()))
        })?;
    }
    call.wait()?;
    if !is_of_server {
        // Who is in a Machine whose PID 1 ends is told so; it is the next one that counts.
        host.get(&address, 80, "/")?;
    }
    check_answer(&host.get(&address, 80, "/held")?, &held)?;
    check_awake_rank(host, &address, &id)?;
    let now = Shape::of(host, app)?;
    ensure!(!is_beside || now.limit == awake.limit, "{now:?}, and it was {awake:?}");
    let same = now.pids == awake.pids;
    ensure!(same == is_beside, "who had to end, or must not, is {awake:?} of before");
    check_true(host, app, false)
}

/// What a sleep must leave as it was: the processes, and the limit that it changes for a while.
#[derive(Debug, PartialEq, Eq)]
struct Shape {
    pids: Vec<i32>,
    /// Of swap on v2, of memory on v1.
    limit: Option<String>,
}

impl Shape {
    fn of(host: &Host, app: &str) -> Result<Self> {
        let machine = only(host, app)?;
        let pids = machine_processes(host, &machine.id).iter().map(|it| it.pid).collect();
        let limit =
            Group::of(host, &machine)?.read("memory", "memory.limit_in_bytes", "memory.swap.max");
        Ok(Self { pids, limit: limit.ok() })
    }
}
