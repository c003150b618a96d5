//! What a generator asks for, and what it tells: `wrk`, on core 1, in the callers' namespace.

use anyhow::{Context, Result, bail};
use perch_testkit::Host;

/// One measurement.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) connections: u32,
    pub(super) seconds: u32,
    pub(super) path: &'static str,
    /// Sent with each request beside the usual ones.
    pub(super) header: Option<&'static str>,
}

/// What `wrk` says of one measurement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Told {
    pub(super) requests: f64,
    pub(super) rate: f64,
    pub(super) median_us: f64,
    pub(super) p99_us: f64,
}

impl Load {
    /// Runs it against one authority (`[address]:port`).
    ///
    /// # Errors
    /// If not every answer is a good one: then nothing can be compared.
    pub(super) fn run(self, host: &Host, authority: &str) -> Result<Told> {
        self.run_on(host, authority, "1")
    }

    /// The same on another core.
    pub(super) fn run_on(self, host: &Host, authority: &str, core: &str) -> Result<Told> {
        let duration = format!("-d{}s", self.seconds);
        let connections = format!("-c{}", self.connections);
        let url = format!("http://{authority}{}", self.path);
        let mut args = vec!["-c", core, "wrk", "-t1", "--latency", &connections, &duration];
        args.extend(self.header.iter().flat_map(|header| ["-H", header]));
        args.push(&url);
        let output = host.run("taskset", &args)?;
        let text = output.ok()?;
        if text.contains("Non-2xx") || text.contains("Socket errors") {
            bail!("not every answer was good:\n{text}");
        }
        parse(&text).with_context(|| format!("wrk does not tell all:\n{text}"))
    }
}

fn parse(text: &str) -> Option<Told> {
    let line = |part: &str| text.lines().map(str::trim).find(|line| line.contains(part));
    let requests = line(" requests in ")?.split(' ').next()?.parse().ok()?;
    let rate = line("Requests/sec:")?.split_whitespace().last()?.parse().ok()?;
    let share = |name: &str| {
        let found = text.lines().map(str::trim).find(|line| line.starts_with(name))?;
        micros(found.split_whitespace().last()?)
    };
    Some(Told { requests, rate, median_us: share("50%")?, p99_us: share("99%")? })
}

/// A time as `wrk` writes it.
fn micros(text: &str) -> Option<f64> {
    let number = text.trim_end_matches(char::is_alphabetic);
    let factor = match &text[number.len()..] {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_tells_is_understood() {
        let text = "Running 3s test @ http://[::1]/\n  1 threads and 64 connections\n  \
            Latency Distribution\n     50%  820.00us\n     75%    1.01ms\n     90%    1.20ms\n     99%    1.50s\n  \
            123456 requests in 3.10s, 20.00MB read\nRequests/sec:  41152.70\nTransfer/sec:      6.45MB\n";
        let told = parse(text).expect("it tells all");
        let wanted =
            Told { requests: 123_456.0, rate: 41_152.7, median_us: 820.0, p99_us: 1_500_000.0 };
        assert_eq!(told, wanted);
        assert_eq!(parse("unable to connect"), None);
    }
}
