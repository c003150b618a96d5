//! Simulates server, proxy, Machines and callers from seeds, and looks for a broken promise.
//!
//! ```text
//! perch-sim [--seeds N]      the first N seeds (default 2,000) and all of seeds.txt
//! perch-sim --seed S         one seed, with everything that happens
//! perch-sim --mutants        planted bugs: each must be noticed
//! perch-sim --seed S --mutant NAME
//! ```
//!
//! The real balancers, admission words, start slots and lifecycles run here; clock, link, store,
//! programs and callers are simulated. A world has one to four apps, which share the host's limit of
//! starts in flight. It is chaos (bursts, callers who leave, failing starts, crashes of server, proxy
//! and programs, breaks of the link between server and proxy, deploys, stops, leases, ends of Machines and of apps), then healing, then rest
//! under constant load, then one last request. Safety is checked at each decision against the shell's own books, liveness at rest:
//! belief equals the world, who may sleep sleeps, who asks is answered, what was destroyed is gone.

mod aimed;
mod choices;
mod health;
mod link;
mod plan;
mod proxy;
mod server;
mod talk;
mod world;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use perch_core::mutant::Mutant;

use world::{Notes, Outcome};

/// Seeds that once failed.
const SEEDS: &str = include_str!("../seeds.txt");
const SEEDS_DEFAULT: u64 = 2_000;
/// A planted bug that this many worlds do not show counts as missed.
const MUTANT_SEEDS: u64 = 20_000;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match simulate(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn simulate(args: &[String]) -> Result<bool> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        [] => search(SEEDS_DEFAULT),
        ["--seeds", count] => search(count.parse().context("--seeds wants a number")?),
        ["--mutants"] => mutants(),
        ["--seed", seed] => one(seed.parse().context("--seed wants a number")?, Mutant::None),
        ["--seed", seed, "--mutant", name] => {
            let mutant = Mutant::ALL.into_iter().find(|m| format!("{m:?}") == *name);
            let mutant = mutant.with_context(|| format!("there is no mutant {name}"))?;
            one(seed.parse().context("--seed wants a number")?, mutant)
        }
        _ => bail!("usage: perch-sim [--seeds N | --seed S [--mutant NAME] | --mutants]"),
    }
}

fn search(count: u64) -> Result<bool> {
    let known = SEEDS.lines().map(|line| line.split('#').next().unwrap_or("").trim());
    let known = known.filter(|line| !line.is_empty()).map(str::parse);
    let known: Vec<u64> = known.collect::<Result<_, _>>().context("seeds.txt")?;
    let (mut failed, mut served) = (0, 0);
    for seed in known.into_iter().chain(0..count) {
        let outcome = world::run(seed, Mutant::None, Notes::Drop);
        served += outcome.served;
        if let Some(violation) = outcome.violation {
            failed += 1;
            println!("seed {seed}: {violation}");
        }
    }
    println!("{count} seeds, {served} requests served, {failed} failed");
    Ok(failed == 0)
}

fn one(seed: u64, mutant: Mutant) -> Result<bool> {
    let Outcome { violation, notes, served } = world::run(seed, mutant, Notes::Keep);
    for note in notes {
        println!("{note}");
    }
    match &violation {
        Some(violation) => println!("seed {seed}: {violation}"),
        None => println!("seed {seed}: clean, {served} requests served"),
    }
    Ok(violation.is_none())
}

fn mutants() -> Result<bool> {
    let mut missed = 0;
    for mutant in Mutant::ALL {
        let killed = (0..MUTANT_SEEDS)
            .find_map(|seed| Some((seed, world::run(seed, mutant, Notes::Drop).violation?)));
        match killed {
            Some((seed, violation)) => println!("killed {mutant:?} by seed {seed}: {violation}"),
            None => {
                missed += 1;
                println!("MISSED {mutant:?} in {MUTANT_SEEDS} seeds");
            }
        }
    }
    println!("{} of {} mutants killed", Mutant::ALL.len() - missed, Mutant::ALL.len());
    Ok(missed == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_replays_to_the_letter() {
        let notes = |seed| world::run(seed, Mutant::None, Notes::Keep).notes;
        for seed in 0..5 {
            assert_eq!(notes(seed), notes(seed), "seed {seed}");
        }
    }

    #[test]
    fn the_first_worlds_are_clean_and_serve_requests() {
        for seed in 0..20 {
            let outcome = world::run(seed, Mutant::None, Notes::Drop);
            assert_eq!(outcome.violation, None, "seed {seed}");
            assert!(outcome.served > 0, "seed {seed}");
        }
    }
}
