//! The same for who only stands by at a step: of server, proxy, shim and init each has steps of its own in some of what a
//! Machine goes through; in the rest it ends at the server's.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use perch_testkit::Host;

use super::{QUICK, Step, all_steps, armed, try_all};
use crate::stage::on;

const ROLES: [&str; 4] = ["server", "proxy", "shim", "init"];
/// What a Machine goes through, whoever ends then.
const LIFE: [&str; 5] = ["start", "stop", "suspend", "resume", "update"];

#[test]
fn who_stands_by_at_a_step_of_a_life_and_ends_leaves_no_machine_lost_or_doubled() {
    let Ok(faults) = tempfile::Builder::new().prefix("perch-faults-").tempdir() else {
        panic!("no directory");
    };
    on(|| armed(&faults, QUICK), |host| try_others(host, faults.path(), &LIFE));
}

pub(super) fn try_others(host: &mut Host, faults: &std::path::Path, during: &[&str]) -> Result<()> {
    let Some(steps) = all_steps(host)? else { return Ok(()) };
    let others: Vec<Step> = during.iter().flat_map(|during| others(&steps, during)).collect();
    let own = steps.iter().filter(|step| during.contains(&step.during.as_str()));
    // Who is there for a moment only cannot stand by.
    let own = own.filter(|step| ROLES.contains(&step.who.as_str()));
    let tried: BTreeSet<_> = own.chain(&others).map(|it| (&*it.during, &*it.who)).collect();
    let all: BTreeSet<_> =
        during.iter().flat_map(|during| ROLES.iter().map(move |who| (*during, *who))).collect();
    ensure!(tried == all, "not each of {ROLES:?} ends in each of {during:?}: {tried:?}");
    try_all(host, faults, &others)
}

/// The server's steps, at which somebody ends who has none of their own then. Asked for at length, each of them at each
/// step; else they take turns.
fn others(steps: &[Step], during: &str) -> Vec<Step> {
    let of_it: Vec<_> = steps.iter().filter(|it| it.during == during).collect();
    let idle: Vec<_> = ROLES.iter().filter(|who| of_it.iter().all(|it| it.who != **who)).collect();
    let all = during == "update" || std::env::var_os("PERCH_LONG").is_some();
    let mut others = Vec::new();
    for (at, step) in of_it.iter().filter(|it| it.who == "server").enumerate() {
        for (turn, who) in idle.iter().enumerate() {
            // The old run has ended there, and the new one has not begun.
            let is_there = step.name != "server.replacing" || **who == "proxy";
            if is_there && (all || at % idle.len() == turn) {
                others.push(Step { who: (**who).to_owned(), ..Step::clone(step) });
            }
        }
    }
    others
}
