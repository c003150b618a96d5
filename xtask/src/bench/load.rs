//! What a generator asks for, and what it tells: `wrk` for HTTP/1.1, `h2load` for HTTP/2, on core 1, in the callers' namespace.

use anyhow::{Context, Result, bail};
use perch_testkit::Host;

use super::grpc;

/// One measurement.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) connections: u32,
    pub(super) seconds: u32,
    pub(super) path: &'static str,
    /// Sent with each request beside the usual ones.
    pub(super) header: Option<&'static str>,
    /// At once on each connection, by HTTP/2; 0: HTTP/1.1.
    pub(super) streams: u32,
    /// Each is a call of gRPC, by HTTP/2.
    pub(super) calls: bool,
}

/// What the generator says of one measurement; not a number where it does not tell.
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
        if self.streams != 0 {
            return self.run_http2(host, authority, core);
        }
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

    fn run_http2(self, host: &Host, authority: &str, core: &str) -> Result<Told> {
        let numbers = [self.seconds, self.connections, self.streams].map(|it| it.to_string());
        let [seconds, connections, streams] = &numbers;
        // It leaves the brackets of a literal address out of what it sends, which is no authority.
        let url = format!("http://bench.flycast{}", self.path);
        let port = if authority.ends_with(']') { ":80" } else { "" };
        let to = format!("--connect-to={authority}{port}");
        let mut args =
            vec!["-c", core, "h2load", "-t1", "-D", seconds, "-c", connections, "-m", streams];
        let message = host.dir().join("message").to_string_lossy().into_owned();
        if self.calls {
            std::fs::write(&message, grpc::MESSAGE)?;
            // With data it posts.
            args.extend(["-d", &message, "-H", "content-type: application/grpc"]);
            args.extend(["-H", "te: trailers"]);
        }
        args.extend([to.as_str(), url.as_str()]);
        let output = host.run("taskset", &args)?;
        let text = output.ok()?;
        let told = parse_http2(&text);
        told.with_context(|| {
            format!("not every answer was good, or h2load does not tell all:\n{text}")
        })
    }
}

/// `None` also if anything failed.
fn parse_http2(text: &str) -> Option<Told> {
    let line = |start: &str| text.lines().find_map(|line| line.trim().strip_prefix(start));
    let rate = line("finished in ")?.split(", ").nth(1)?.strip_suffix(" req/s")?.parse().ok()?;
    let counts = line("requests: ")?;
    let count = |word: &str| {
        let found = counts.split(", ").find_map(|part| part.trim().strip_suffix(word));
        found?.trim().parse::<f64>().ok()
    };
    let good = [" failed", " errored", " timeout"].iter().all(|it| count(it) == Some(0.0));
    let codes = line("status codes: ")?.split(", ").skip(1).all(|part| part.starts_with("0 "));
    let mean = line("time for request:")?.split_whitespace().nth(2)?;
    let (requests, median_us) = (count(" succeeded")?, micros(mean)?);
    let told = Told { requests, rate, median_us, p99_us: f64::NAN };
    (good && codes).then_some(told)
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

    #[test]
    fn what_h2load_tells_is_understood() {
        let text = "finished in 3.00s, 12345.50 req/s, 1.20MB/s\n\
            requests: 37036 total, 37164 started, 37036 done, 37036 succeeded, 0 failed, 0 errored, 0 timeout\n\
            status codes: 37040 2xx, 0 3xx, 0 4xx, 0 5xx\n\
            \x20                    min         max         mean         sd        +/- sd\n\
            time for request:      280us     12.12ms      1.05ms       400us    85.11%\n";
        let told = parse_http2(text).expect("it tells all");
        let of = (told.requests, told.rate, told.median_us);
        assert_eq!(of, (37_036.0, 12_345.5, 1_050.0));
        assert!(parse_http2(&text.replace(" 0 failed", " 3 failed")).is_none());
        assert!(parse_http2(&text.replace("0 5xx", "7 5xx")).is_none());
        assert!(parse_http2("Could not connect").is_none());
    }
}
