//! `cargo x`: everything a contributor runs, in one program.
//!
//! `check` reads, `test` runs, `sim` and `bench` measure. Continuous integration runs `test` and
//! nothing else. This program decides nothing about the product; it only calls cargo and reads
//! files.

mod bench;
mod deny;
mod dist;
mod fixture;
mod fuzz;
mod guest;
mod host_tests;
mod licenses;
mod packages;
mod ring;
mod schemathesis;
mod shell;
mod source;
mod tidy;

use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "\
usage: cargo x COMMAND

  test [RING|CRATE]...  everything, or one ring (check, unit, sim, component, host, model, wire, guest), or
                        one crate
  check                 format, clippy, tidy, docs, deny
  docs                  write what is made from code: docs/compat-commands.md and crates/cli/tests/help
  tidy                  the rules of this repository that clippy does not know
  deny                  licences, bans and sources of all dependencies
  sim ARGS...           the simulation, release profile (--seeds N, --seed S, --mutants)
  model ARGS...         random API calls against a model of the server, release profile (root) [--sequences N] [--seed S]
  fuzz [TARGET]...      libFuzzer over what the proxy reads, one target after the other; needs cargo-fuzz
                        [--seconds N, of each, default 60]
  bench wake|warm       measure beside runc and HAProxy (root, Debian) [--rounds N]
  bench proxy           the proxy beside HAProxy and nginx, row by row (root, Debian) [--rounds N] [--only ROW] [--held N] [--addresses N]
  bench status          what commands and server cost with 1,000 apps (root) [--rounds N]
  bench sleep           a frozen Machine to its first byte, beside itself awake; then with 500 MB of it in swap (root)
                        [--rounds N] [--freezer v2|v1|stop]
  bench neighbour       what a quiet Machine feels of one that abuses its limits (root) [--rounds N]
                        [--only spins|forks|eats-memory|fills-disk|fills-log]
  bench cycles          sleeps and wakes under callers who come at the worst moments (root) [--cycles N]
  bench fleet           what thousands of Machines cost that do nothing, and how soon all are seen to (root)
                        [--apps N] [--suspended N] [--idle N] [--adopt N] [--seconds N]
  bench postgres        the first query to a database asleep under 100 connections (root) [--rounds N]
  install, uninstall    on this host (root) [--prefix DIR, default /usr/local]
  fixture               this release's data directory for the tests of later ones (root)
  dist                  a tarball and a Debian package in target/dist

E2E_REQUIRED=1 turns every skip into a failure. WIRE_SEED (1), WIRE_EXAMPLES (40) and WIRE_SECONDS (instead of
examples: as many as fit) are for the ring `wire`.";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs one command; `false` means that it ran and found something.
fn run(args: &[String]) -> Result<bool> {
    let (command, rest) = match args {
        [] => bail!("no command given\n\n{USAGE}"),
        [command, rest @ ..] => (command.as_str(), rest),
    };
    match command {
        "test" => ring::test(rest),
        "check" => ring::check(),
        "docs" => ring::docs_from_code(),
        "tidy" => tidy::run(),
        "deny" => deny::run(),
        "sim" => ring::sim(rest),
        "model" => ring::model(rest),
        "fuzz" => fuzz::run(rest),
        "bench" => bench::run(rest),
        "install" => dist::install(rest),
        "uninstall" => dist::uninstall(rest),
        "dist" => dist::dist(),
        "fixture" => fixture::make(),
        bench::UPSTREAM => bench::upstream(rest),
        bench::FLOOD => bench::flood(rest),
        bench::RELAY => bench::relay(rest),
        "help" | "--help" | "-h" => {
            println!("{USAGE}");
            Ok(true)
        }
        other => bail!("unknown command `{other}`\n\n{USAGE}"),
    }
}
