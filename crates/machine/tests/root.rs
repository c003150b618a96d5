//! Real Machines on this host: needs root, user namespaces, `busybox-static`, `ip` and `rustc`.
//!
//! One binary without the usual harness, because a launch executes this very program again as `shim DIR` and an
//! unpacking as `unpack DIR`, a probe as
//! `probe DIR`. All run a second time as on a kernel that cannot map ids: with copies of the layers ("by copies" follows
//! their names), and those of runs a third time, by shims that were spawned ahead ("by blanks"). Tests run one after the other; each gets a directory, a network namespace and cgroups of
//! its own, which are removed also after a failure. An argument selects tests whose name contains it.

#[path = "root/armed.rs"]
mod armed;
#[path = "root/blanks.rs"]
mod blanks;
#[path = "root/confinement.rs"]
mod confinement;
#[path = "root/fixture.rs"]
mod fixture;
#[path = "root/ids.rs"]
mod ids;
#[path = "root/image.rs"]
mod image;
#[path = "root/joining.rs"]
mod joining;
#[path = "root/machine.rs"]
mod machine;

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;

use fixture::{Fixture, Tested, Way};
use perch_machine::Ids;

type Test = (&'static str, fn(&Fixture) -> Tested);

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    match (args.get(1).and_then(|word| word.to_str()), args.get(2)) {
        (Some("shim"), Some(dir)) => {
            perch_machine::shim::main(dir.as_ref(), args.get(3).map(|word| word.as_os_str()))
        }
        (Some("blank"), Some(parent)) => {
            perch_machine::shim::blank::main(&parent.to_string_lossy())
        }
        (Some("unpack"), Some(dir)) => perch_machine::unpack::main(dir.as_ref()),
        (Some("probe"), Some(dir)) => perch_machine::ids::main(dir.as_ref()),
        (Some("enter"), None) => perch_machine::enter::main(),
        (Some("--list"), _) => ExitCode::SUCCESS,
        (filter, _) => run(filter.filter(|word| !word.starts_with('-')).unwrap_or_default()),
    }
}

fn run(filter: &str) -> ExitCode {
    // What differs by who made the run.
    let runs: Vec<Test> = [machine::TESTS, joining::TESTS, confinement::TESTS].concat();
    let others: Vec<Test> = [armed::TESTS, image::TESTS, ids::TESTS].concat();
    let ways = [
        (&runs, Ids::Mapped, Way::Usual, ""),
        (&others, Ids::Mapped, Way::Usual, ""),
        (&runs, Ids::Shifted, Way::Usual, " by copies"),
        (&others, Ids::Shifted, Way::Usual, " by copies"),
        (&runs, Ids::Mapped, Way::Blanks, " by blanks"),
        // Those have their own shims.
        (&blanks::TESTS.to_vec(), Ids::Mapped, Way::Usual, ""),
    ];
    let all = ways.iter().flat_map(|(tests, ids, way, words)| {
        tests.iter().map(move |(name, test)| (format!("{name}{words}"), (*ids, *way), *test))
    });
    let chosen: Vec<_> = all.filter(|(name, ..)| name.contains(filter)).collect();
    if let Some(reason) = fixture::missing() {
        println!("skipped {} tests: {reason}", chosen.len());
        let required = std::env::var("E2E_REQUIRED").is_ok_and(|value| value == "1");
        return if required { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    println!("\nrunning {} tests", chosen.len());
    let failed = chosen.iter().filter(|(name, ids, test)| !run_one(name, *ids, *test)).count();
    fixture::discard_programs();
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {word}. {} passed; {failed} failed; 0 ignored", chosen.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_one(name: &str, (ids, way): (Ids, Way), test: fn(&Fixture) -> Tested) -> bool {
    let fixture = match Fixture::new(ids, way) {
        Ok(fixture) => fixture,
        Err(error) => {
            println!("test {name} ... FAILED\n  no fixture: {error}");
            return false;
        }
    };
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| test(&fixture)));
    let text = match &outcome {
        Ok(Ok(())) => "ok".to_owned(),
        Ok(Err(error)) => format!("FAILED\n  {error}\n{}", fixture.logs()),
        Err(_) => format!("FAILED (panicked)\n{}", fixture.logs()),
    };
    println!("test {name} ... {text}");
    matches!(outcome, Ok(Ok(())))
}
