//! `cargo x bench`: our figures beside those of a program that everybody knows, interleaved.
//!
//! Absolute values move by a factor of two between runs on a shared machine; ratios within one run
//! do not. So each round measures every contender once, medians are compared, and the limit is a
//! ratio.

mod activate;
mod callers;
mod cycles;
mod figures;
mod fleet;
mod flood;
mod grpc;
mod load;
mod neighbour;
mod paged;
mod postgres;
mod proxy;
mod relay;
mod rig;
mod rootfs;
mod runc;
mod sleep;
mod status;
mod upstream;
mod wake;
mod warm;

use std::process::Command;

use anyhow::{Context, Result, bail};

pub(crate) use flood::flood;
pub(crate) use relay::relay;
pub(crate) use upstream::upstream;

use crate::{packages, shell};

/// The hidden command that is the upstream of `warm` and `proxy`.
pub(crate) const UPSTREAM: &str = "upstream";
/// The hidden command that floods in `neighbour`.
pub(crate) const FLOOD: &str = "flood";
/// The hidden command that relays in `proxy`.
pub(crate) const RELAY: &str = "relay";

/// Runs one benchmark; whether our promise holds.
pub(crate) fn run(args: &[String]) -> Result<bool> {
    match args.split_first().map(|(name, rest)| (name.as_str(), rest)) {
        Some(("fleet", rest)) => {
            let options = fleet::Options::parse(rest)?;
            on_a_host(args, || fleet::run(options))
        }
        Some(("sleep", rest)) => {
            let options = sleep::Options::parse(rest)?;
            on_a_host(args, || sleep::run(options))
        }
        Some(("neighbour", rest)) => {
            let options = neighbour::Options::parse(rest)?;
            on_a_host(args, || neighbour::run(options))
        }
        Some(("cycles", rest)) => {
            let options = cycles::Options::parse(rest)?;
            on_a_host(args, || cycles::run(&options))
        }
        Some(("proxy", rest)) => {
            let options = proxy::Options::parse(rest)?;
            on_a_host(args, || proxy::run(&options))
        }
        _ => {
            let (which, rounds) = parse(args)?;
            on_a_host(args, || run_rounds(which, rounds))
        }
    }
}

fn run_rounds(which: &str, rounds: Option<usize>) -> Result<bool> {
    match which {
        "wake" => wake::run(rounds.unwrap_or(wake::ROUNDS)),
        "callers" => callers::run(rounds.unwrap_or(callers::ROUNDS)),
        "status" => status::run(rounds.unwrap_or(status::ROUNDS)),
        "postgres" => postgres::run(rounds.unwrap_or(postgres::ROUNDS)),
        _ => warm::run(rounds.unwrap_or(warm::ROUNDS)),
    }
}

/// Where it may make one and our programs are built; else sees to that.
fn on_a_host(args: &[String], run: impl FnOnce() -> Result<bool>) -> Result<bool> {
    if !shell::is_root() {
        bail!("benchmarks make whole hosts: run `sudo -E cargo x bench {}`", args.join(" "));
    }
    if std::env::var_os("PERCH_BIN").is_none() {
        return build_and_run(args);
    }
    figures::print_machine();
    run()
}

fn parse(args: &[String]) -> Result<(&'static str, Option<usize>)> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (name, rest) = args.split_first().context(
        "name a benchmark: callers, cycles, fleet, neighbour, postgres, proxy, sleep, status, wake or warm",
    )?;
    let which = match *name {
        "callers" => "callers",
        "postgres" => "postgres",
        "status" => "status",
        "wake" => "wake",
        "warm" => "warm",
        other => {
            bail!(
                "unknown benchmark `{other}`; there are callers, cycles, fleet, neighbour, postgres, proxy, \
                 sleep, status, wake and warm"
            )
        }
    };
    match rest {
        [] => Ok((which, None)),
        ["--rounds", number] => Ok((which, Some(number.parse().context("--rounds")?))),
        _ => bail!("only --rounds N can follow"),
    }
}

/// Builds what is measured in the release profile and starts this program again with its path.
fn build_and_run(args: &[String]) -> Result<bool> {
    packages::ensure(packages::BENCHES)?;
    let build = ["build", "--release", "--locked", "-p", "perch", "-p", "perch-hello"];
    if !shell::succeeds(&mut shell::cargo(&build))? {
        bail!("the release build failed");
    }
    let own = std::env::current_exe().context("finding this program")?;
    let mut again = Command::new(own);
    again.arg("bench").args(args).env("PERCH_BIN", shell::built("release", "perch")?);
    shell::succeeds(&mut again)
}
