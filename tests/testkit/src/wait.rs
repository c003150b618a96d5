//! Waits for conditions with a deadline. The only place that sleeps, and never for a result.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Between two looks. Short enough not to matter in what is measured by hand.
const POLL: Duration = Duration::from_millis(10);

/// Asks until there is an answer; `what` names the wait in the error.
///
/// An error of `probe` counts as "not yet" and is part of the error at the deadline.
pub fn wait_until<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        let last = match probe() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if deadline < Instant::now() {
            let text = format!("waited {limit:?} for: {what}");
            return match last {
                Some(error) => Err(error).context(text),
                None => bail!("{text}"),
            };
        }
        std::thread::sleep(POLL);
    }
}

/// Fails if `probe` is false at any look during `length`.
pub fn holds_for(
    what: &str,
    length: Duration,
    mut probe: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let started = Instant::now();
    while started.elapsed() < length {
        if !probe()? {
            bail!("did not hold for {length:?}, but {:?}: {what}", started.elapsed());
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_is_part_of_the_timeout() {
        let result: Result<()> =
            wait_until("the moon", Duration::ZERO, || bail!("it is still day"));
        let text = format!("{:#}", result.expect_err("nothing can be found"));
        assert!(text.contains("the moon") && text.contains("still day"), "{text}");
    }

    #[test]
    fn an_answer_ends_the_wait() {
        let mut looks = 0;
        let answer = wait_until("three", Duration::from_secs(5), || {
            looks += 1;
            Ok((looks == 3).then_some(looks))
        });
        assert_eq!(answer.expect("it comes at the third look"), 3);
    }
}
