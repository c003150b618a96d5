//! Makes a failing sequence shorter.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::lane::{Failure, Lane};
use crate::op::{Fate, Step};

/// Longer is not looked for a shorter one.
const SEARCH_MAX: Duration = Duration::from_secs(240);
/// What depends on the moment of a kill need not fail each time.
const TRIES: usize = 2;

/// Leaves out steps, and then kills, as long as the sequence fails without them. Each attempt has a host of its own.
///
/// # Errors
/// When no host can be made.
pub(crate) fn shrink(mut shortest: Failure) -> Result<Failure> {
    let started = Instant::now();
    let mut piece = shortest.steps.len() / 2;
    while 0 < piece {
        let mut at = 0;
        while at < shortest.steps.len() && started.elapsed() < SEARCH_MAX {
            let end = (at + piece).min(shortest.steps.len());
            let steps = [&shortest.steps[..at], &shortest.steps[end..]].concat();
            match fails(&steps)? {
                Some(failure) => shortest = failure,
                None => at = end,
            }
        }
        piece /= 2;
    }
    for at in 0..shortest.steps.len() {
        let mut steps: Vec<Step> = shortest.steps.clone();
        if steps[at].fate == Fate::Nothing || SEARCH_MAX < started.elapsed() {
            continue;
        }
        steps[at].fate = Fate::Nothing;
        if let Some(failure) = fails(&steps)? {
            shortest = failure;
        }
    }
    Ok(shortest)
}

fn fails(steps: &[Step]) -> Result<Option<Failure>> {
    let tries = if steps.iter().any(|step| step.fate != Fate::Nothing) { TRIES } else { 1 };
    for _ in 0..tries {
        if let Err(failure) = Lane::start()?.replay(steps) {
            return Ok(Some(failure));
        }
    }
    Ok(None)
}
