//! What the server and its proxies say to operators, in lines on their standard errors; `PERCH_LOG` says which.
//!
//! Who starts the server keeps its lines, and bounds them. Those of all proxies go to one file, `proxy.log`, and some may come
//! with each connection: in a second a proxy has a few, the others are counted, and of a full file the older half goes.
//! A proxy waits for no disk: a thread writes for it, which is there only while there is something to write. It has the
//! file's lock meanwhile: a former proxy and its successor write to one file, and either may make it shorter.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use perch_core::ledger::Quota;
use perch_core::time::Timestamp;
use rustix::fs::{FlockOperation, flock};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::server::clock;

/// Lines of one proxy in a second: what fails for ten callers is said as well as what fails for ten thousand.
const LINES_PER_SECOND: u32 = 10;
/// Bytes of a line; no more of it is kept.
const LINE_BYTES_MAX: usize = 16 * 1024;
/// Lines that wait for the disk.
const WAITING_MAX: usize = 64;
/// Bytes of `proxy.log`: some 30,000 lines.
const FILE_BYTES_MAX: u64 = if cfg!(test) { 64 << 10 } else { 4 << 20 };
/// Bytes of the thread's stack.
const STACK_BYTES: usize = 128 * 1024;
/// How long the end of a proxy waits for what it has said to be written.
const END_TIMEOUT: Duration = Duration::from_millis(500);

/// Begins, for a server.
pub(crate) fn begin() {
    begin_with(io::stderr, io::stderr().is_terminal());
}

/// Begins, for a proxy; its panics are lines too, and have a backtrace where `RUST_BACKTRACE` wants one, as those of the server. What has not been written is when the answer is dropped.
///
/// # Errors
/// When the process has no descriptor left.
pub(crate) fn begin_for_proxy() -> io::Result<LastWords> {
    let log = Log::new(File::from(io::stderr().as_fd().try_clone_to_owned()?));
    let writer = log.clone();
    begin_with(move || writer.clone(), false);
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = Backtrace::capture();
        match backtrace.status() {
            // With addresses: a release has no names.
            BacktraceStatus::Captured => tracing::error!("{panic}\n{backtrace:#}"),
            _ => tracing::error!("{panic}"),
        }
    }));
    Ok(LastWords(log))
}

fn begin_with(writer: impl for<'a> MakeWriter<'a> + Send + Sync + 'static, is_terminal: bool) {
    let mut filter = EnvFilter::try_from_env("PERCH_LOG").unwrap_or_else(|_| "info".into());
    // Panics, whatever else is wanted.
    if let Ok(panics) = concat!(module_path!(), "=error").parse() {
        filter = filter.add_directive(panics);
    }
    let lines = tracing_subscriber::fmt().with_writer(writer).with_env_filter(filter);
    lines.with_target(false).with_ansi(is_terminal).init();
}

/// Waits for what was said to be written, but for no disk that stands still.
#[derive(Debug)]
pub(crate) struct LastWords(Log);

impl Drop for LastWords {
    fn drop(&mut self) {
        self.0.wait(END_TIMEOUT);
    }
}

/// See the module's head.
#[derive(Debug, Clone)]
struct Log(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    file: File,
    said: Mutex<Said>,
    written: Condvar,
}

#[derive(Debug)]
struct Said {
    quota: Quota,
    left_out: u64,
    waiting: VecDeque<Vec<u8>>,
    /// There is a thread that writes.
    writing: bool,
}

impl Log {
    /// One that appends to this file.
    fn new(file: File) -> Self {
        let quota = Quota::new(LINES_PER_SECOND);
        let said = Said { quota, left_out: 0, waiting: VecDeque::new(), writing: false };
        Self(Arc::new(Shared { file, said: Mutex::new(said), written: Condvar::new() }))
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.0.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, line: &[u8], now: Timestamp) {
        let mut said = self.said();
        let Some(left_out) = said.quota.pass(now) else { return };
        said.left_out += left_out;
        if said.waiting.len() == WAITING_MAX {
            said.left_out += 1;
            return;
        }
        let mut text = match std::mem::take(&mut said.left_out) {
            0 => Vec::new(),
            left_out => format!("{left_out} lines were left out\n").into_bytes(),
        };
        text.extend_from_slice(&line[..line.len().min(LINE_BYTES_MAX)]);
        if LINE_BYTES_MAX < line.len() {
            text.push(b'\n');
        }
        said.waiting.push_back(text);
        if !said.writing {
            let log = self.clone();
            let thread = std::thread::Builder::new().name("log".to_owned()).stack_size(STACK_BYTES);
            // Without a thread it waits for the next line.
            said.writing = thread.spawn(move || log.write_out()).is_ok();
        }
    }

    /// Writes until nothing waits.
    fn write_out(&self) {
        while let Some(text) = self.next() {
            // Where it could be said that this has failed, it has just failed.
            append(&self.0.file, &text).ok();
        }
        self.0.written.notify_all();
    }

    fn next(&self) -> Option<Vec<u8>> {
        let mut said = self.said();
        let next = said.waiting.pop_front();
        said.writing = next.is_some();
        next
    }

    fn wait(&self, timeout: Duration) {
        let waited = self.0.written.wait_timeout_while(self.said(), timeout, |said| said.writing);
        drop(waited);
    }
}

impl Write for Log {
    /// Takes a whole line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.say(line, clock::now());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn append(file: &File, text: &[u8]) -> io::Result<()> {
    // Who has it and stands still lets lines wait, of which only so many do, and nobody else. Where there are no locks it is
    // written without.
    let locked = flock(file, FlockOperation::LockExclusive);
    let appended = append_alone(file, text);
    if locked.is_ok() {
        flock(file, FlockOperation::Unlock)?;
    }
    appended
}

fn append_alone(mut file: &File, text: &[u8]) -> io::Result<()> {
    // Others append to it too. What is no file has no length.
    let len = file.metadata()?.len();
    if FILE_BYTES_MAX < len + text.len() as u64 {
        keep_newer_half(file, len)?;
    }
    file.write_all(text)
}

fn keep_newer_half(mut file: &File, len: u64) -> io::Result<()> {
    let kept = len.min(FILE_BYTES_MAX / 2);
    let mut newer = vec![0; usize::try_from(kept).unwrap_or(0)];
    file.read_exact_at(&mut newer, len - kept)?;
    let begin = newer.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    file.set_len(0)?;
    file.write_all(&newer[begin..])
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::sync::Barrier;

    use super::*;

    /// Nothing takes longer unless it hangs.
    const LONG: Duration = Duration::from_secs(60);

    fn log() -> (Log, tempfile::NamedTempFile) {
        let named = tempfile::NamedTempFile::new().expect("a file");
        (Log::new(open(&named)), named)
    }

    /// As the server does for each proxy.
    fn open(file: &tempfile::NamedTempFile) -> File {
        File::options().read(true).append(true).open(file.path()).expect("a file")
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_micros(1_000_000 * seconds)
    }

    fn text(file: &tempfile::NamedTempFile) -> String {
        std::fs::read_to_string(file.path()).expect("text")
    }

    #[test]
    fn of_a_flood_some_lines_are_written_and_the_others_counted() {
        let (log, file) = log();
        (0..1_000).for_each(|_| log.say(b"failed\n", at(1)));
        log.wait(LONG);
        assert_eq!(text(&file), "failed\n".repeat(10));
        log.say(&[b'x'; 2 * LINE_BYTES_MAX], at(3));
        log.wait(LONG);
        let long = format!("990 lines were left out\n{}\n", "x".repeat(LINE_BYTES_MAX));
        assert!(text(&file).ends_with(&long));
    }

    #[test]
    fn of_a_full_file_the_older_half_goes() {
        let (log, file) = log();
        let count = 3 * FILE_BYTES_MAX / 100;
        for number in 0..count {
            log.say(format!("{number:099}\n").as_bytes(), at(number));
            log.wait(LONG);
            assert!(text(&file).len() as u64 <= FILE_BYTES_MAX, "{number}");
        }
        let text = text(&file);
        assert!(FILE_BYTES_MAX / 2 - 100 <= text.len() as u64, "more is gone");
        let lines: Vec<u64> = text.lines().map(|line| line.parse().expect("whole")).collect();
        assert_eq!(lines, (count - lines.len() as u64..count).collect::<Vec<_>>());
    }

    /// Of both writers together less than is kept, and the limit is passed when they have written half of it.
    #[test]
    fn two_proxies_that_pass_the_limit_together_lose_none_of_their_lines() {
        const LINES: u64 = FILE_BYTES_MAX / 100 / 6;
        for round in 0..50 {
            let file = tempfile::NamedTempFile::new().expect("a file");
            let older = format!("{:099}\n", 0).repeat(usize::try_from(5 * LINES).expect("few"));
            std::fs::write(file.path(), &older).expect("it is written");
            let begin = Barrier::new(2);
            let line = |writer: &str, number: u64| format!("{writer}{number:098}\n");
            std::thread::scope(|scope| {
                for writer in ["a", "b"] {
                    let (own, begin) = (open(&file), &begin);
                    scope.spawn(move || {
                        begin.wait();
                        for number in 0..LINES {
                            append(&own, line(writer, number).as_bytes()).expect("it is written");
                        }
                    });
                }
            });
            let text = text(&file);
            for writer in ["a", "b"] {
                let own = text.split_inclusive('\n').filter(|line| line.starts_with(writer));
                let wanted: String = (0..LINES).map(|number| line(writer, number)).collect();
                assert_eq!(own.collect::<String>(), wanted, "{writer} in round {round}");
            }
            let kept = FILE_BYTES_MAX / 2 - 100..older.len() as u64;
            assert!(kept.contains(&(text.len() as u64)), "{} bytes are left", text.len());
        }
    }

    #[test]
    fn a_panic_of_a_proxy_has_a_backtrace_where_one_is_wanted() {
        const NAME: &str = "a_panic_of_a_proxy_has_a_backtrace_where_one_is_wanted";
        const IS_PROXY: &str = "PERCH_TEST_IS_PROXY";
        if std::env::var_os(IS_PROXY).is_some() {
            let last_words = begin_for_proxy().expect("a descriptor");
            std::thread::spawn(|| panic!("as it must")).join().expect_err("it panics");
            // Its end is not to be short here.
            return last_words.0.wait(Duration::from_secs(30));
        }
        let own = std::env::current_exe().expect("a path");
        for (wanted, has) in [("0", false), ("1", true)] {
            let file = tempfile::NamedTempFile::new().expect("a file");
            let mut proxy = Command::new(&own);
            proxy.args(["--exact", &format!("logging::tests::{NAME}")]);
            proxy.env(IS_PROXY, "").env("RUST_BACKTRACE", wanted).env_remove("RUST_LIB_BACKTRACE");
            proxy.env("PERCH_LOG", "off").stdout(Stdio::null()).stderr(open(&file));
            assert!(proxy.status().expect("it begins").success(), "{}", text(&file));
            let text = text(&file);
            assert!(text.contains("as it must"), "{text}");
            assert_eq!(text.contains(&format!("logging::tests::{NAME}::")), has, "{text}");
        }
    }
}
