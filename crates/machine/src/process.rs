//! What runs inside a Machine, read from `/proc`.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::sys;

/// The kernel's unit of CPU time towards programs is fixed at 1/100 s.
const TICKS_PER_SECOND: u64 = 100;
const PAGE_BYTES: u64 = 4096;
/// What `/proc/PID/stat` has at most: 52 numbers and a name.
const STAT_LEN: usize = 2048;
const STAT_LEN_MAX: u64 = 2048;
/// A Machine's workers have a descriptor each while it sleeps, if they are not more: there is about one for each processor.
/// What forks one for each caller has more, and those end with their callers.
const WATCHED_MAX: usize = 8;
/// State of a listening TCP socket and of an unconnected UDP socket in `/proc/net`.
const TCP_LISTEN: &str = "0A";
const UDP_UNCONNECTED: &str = "07";

/// A process of a Machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id as the Machine sees it.
    pub pid: i32,
    /// Command line, arguments separated by spaces.
    pub command: String,
    /// Working directory as the Machine sees it; empty when unreadable.
    pub directory: String,
    /// CPU time spent in the kernel, in clock ticks (1/100 s).
    pub stime: u64,
    /// Time since it started, in seconds.
    pub rtime: u64,
    /// CPU time spent altogether, in clock ticks (1/100 s).
    pub cpu: u64,
    /// Resident memory in bytes.
    pub rss: u64,
    /// TCP and UDP sockets that it listens on.
    pub listen_sockets: Vec<ListenSocket>,
}

/// A socket that a process listens on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ListenSocket {
    /// `tcp` or `udp`.
    pub proto: String,
    /// `address:port`; an IPv6 address in brackets.
    pub address: String,
}

/// Lists the processes `pids` (ids of the host) of the Machine whose PID 1 is `init`. Those that end meanwhile are left
/// out.
pub(crate) fn list(init: i32, pids: &[i32]) -> io::Result<Vec<Process>> {
    let listening = listening_sockets(init)?;
    let uptime = uptime_s()?;
    let mut all: Vec<_> =
        pids.iter().filter_map(|pid| describe(*pid, uptime, &listening)).collect();
    all.sort_by_key(|process| process.pid);
    Ok(all)
}

/// Start time of a process in clock ticks since boot, which with its id names it until the next boot.
///
/// # Errors
/// When there is no such process.
pub fn start_time(pid: i32) -> io::Result<u64> {
    // Its length is not known before; by default it is read in nine pieces.
    let mut stat = String::with_capacity(STAT_LEN);
    File::open(format!("/proc/{pid}/stat"))?.take(STAT_LEN_MAX).read_to_string(&mut stat)?;
    Stat::parse(&stat).map(|stat| stat.start_ticks).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Where the parts of this process's memory are, without the end of its heap.
pub(crate) fn memory_map() -> io::Result<crate::sys::MemoryMap> {
    let text = fs::read_to_string("/proc/self/stat")?;
    // The third field of proc(5) and those after it: the second may have spaces in it.
    let fields = text.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let fields: Vec<u64> =
        fields.split_ascii_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
    let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0);
    Ok(crate::sys::MemoryMap {
        code: [field(26), field(27)],
        stack_start: field(28),
        data: [field(45), field(46)],
        heap: [field(47), 0],
        environment: [field(50), field(51)],
        ..Default::default()
    })
}

/// A process that was forked by one of the same name, as servers fork their workers.
#[derive(Debug)]
pub struct Worker {
    /// Its name, which programs set to what they like: at most 15 bytes.
    pub name: String,
    pid: i32,
    start_ticks: u64,
    /// By which the kernel tells how it ended, also after somebody has reaped it.
    pidfd: Option<OwnedFd>,
}

/// How a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerEnd {
    /// The kernel does not tell.
    Unknown,
    /// By itself, with this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Worker {
    /// How it ended, reaped or not; `None`: it runs.
    pub fn end(&self) -> Option<WorkerEnd> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        let stat = Stat::parse(&stat).filter(|stat| stat.start_ticks == self.start_ticks);
        let status = match stat {
            Some(stat) if !stat.is_zombie => return None,
            // To those who may not know the kernel says 0.
            Some(stat) => stat.wait_status.filter(|status| *status != 0),
            None => self.pidfd.as_ref().and_then(|pidfd| sys::wait_status(pidfd.as_fd())),
        };
        Some(status.map_or(WorkerEnd::Unknown, WorkerEnd::of))
    }

    /// Without a descriptor it is only not known how it ends.
    fn watch(&mut self) {
        let pid = Pid::from_raw(self.pid);
        self.pidfd = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    }
}

impl WorkerEnd {
    fn of(status: i32) -> Self {
        match status & 0x7f {
            0 => Self::Code(status >> 8 & 0xff),
            signal => Self::Signal(signal),
        }
    }
}

/// Those of `pids` (ids of the host) that are workers of others among them.
pub(crate) fn workers(pids: &[i32]) -> Vec<Worker> {
    let read = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some((*pid, name_of(&stat)?.to_owned(), Stat::parse(&stat)?))
    };
    let all: HashMap<i32, (String, Stat)> =
        pids.iter().filter_map(read).map(|(pid, name, stat)| (pid, (name, stat))).collect();
    let is_worker =
        |name: &str, stat: &Stat| all.get(&stat.parent).is_some_and(|(parent, _)| parent == name);
    let workers = all.iter().filter(|(_, (name, stat))| is_worker(name, stat));
    let workers = workers.map(|(pid, (name, stat))| Worker {
        name: name.clone(),
        pid: *pid,
        start_ticks: stat.start_ticks,
        pidfd: None,
    });
    let mut workers: Vec<Worker> = workers.collect();
    if workers.len() <= WATCHED_MAX {
        workers.iter_mut().for_each(Worker::watch);
    }
    workers
}

fn name_of(stat: &str) -> Option<&str> {
    Some(stat.split_once('(')?.1.rsplit_once(')')?.0)
}

/// What we use of `/proc/PID/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    is_zombie: bool,
    parent: i32,
    user_ticks: u64,
    system_ticks: u64,
    start_ticks: u64,
    resident_pages: u64,
    /// Of a zombie, as wait(2) gives it.
    wait_status: Option<i32>,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name in parentheses may hold anything; the fields begin after the last one, with number 3.
        let fields: Vec<_> = text.rsplit_once(") ")?.1.split(' ').collect();
        let text = |field: usize| fields.get(field - 3).map(|text| text.trim());
        let number = |field: usize| text(field)?.parse().ok();
        Some(Self {
            is_zombie: *fields.first()? == "Z",
            parent: fields.get(1)?.parse().ok()?,
            user_ticks: number(14)?,
            system_ticks: number(15)?,
            start_ticks: number(22)?,
            resident_pages: number(24)?,
            wait_status: text(52).and_then(|text| text.parse().ok()),
        })
    }
}

fn describe(pid: i32, uptime_s: u64, listening: &HashMap<u64, ListenSocket>) -> Option<Process> {
    let dir = format!("/proc/{pid}");
    let stat = Stat::parse(&fs::read_to_string(format!("{dir}/stat")).ok()?)?;
    let status = fs::read_to_string(format!("{dir}/status")).ok()?;
    let command = fs::read(format!("{dir}/cmdline")).ok()?;
    let directory = fs::read_link(format!("{dir}/cwd")).unwrap_or_default();
    Some(Process {
        pid: inner_pid(&status)?,
        command: String::from_utf8_lossy(&command).trim_end_matches('\0').replace('\0', " "),
        directory: directory.to_string_lossy().into_owned(),
        stime: stat.system_ticks,
        rtime: uptime_s.saturating_sub(stat.start_ticks / TICKS_PER_SECOND),
        cpu: stat.user_ticks + stat.system_ticks,
        rss: stat.resident_pages * PAGE_BYTES,
        listen_sockets: sockets_of(&dir, listening),
    })
}

/// The process id in the innermost namespace.
fn inner_pid(status: &str) -> Option<i32> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_ascii_whitespace().last()?.parse().ok()
}

fn uptime_s() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/uptime")?;
    let whole = text.split('.').next().and_then(|seconds| seconds.parse().ok());
    whole.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn sockets_of(dir: &str, listening: &HashMap<u64, ListenSocket>) -> Vec<ListenSocket> {
    let links = fs::read_dir(format!("{dir}/fd")).into_iter().flatten().flatten();
    let inodes = links.filter_map(|link| {
        let target = fs::read_link(link.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    });
    let mut found: Vec<_> =
        inodes.filter_map(|inode: u64| listening.get(&inode).cloned()).collect();
    found.sort();
    found.dedup();
    found
}

/// The listening sockets of a process's network namespace, by inode.
fn listening_sockets(pid: i32) -> io::Result<HashMap<u64, ListenSocket>> {
    let mut found = HashMap::new();
    let tables = [
        ("tcp", "tcp", TCP_LISTEN),
        ("tcp6", "tcp", TCP_LISTEN),
        ("udp", "udp", UDP_UNCONNECTED),
        ("udp6", "udp", UDP_UNCONNECTED),
    ];
    for (file, proto, state) in tables {
        let table = fs::read_to_string(format!("/proc/{pid}/net/{file}"))?;
        found.extend(table.lines().skip(1).filter_map(|line| parse_socket(line, proto, state)));
    }
    Ok(found)
}

fn parse_socket(line: &str, proto: &str, state: &str) -> Option<(u64, ListenSocket)> {
    let fields: Vec<_> = line.split_ascii_whitespace().collect();
    if *fields.get(3)? != state {
        return None;
    }
    let address = parse_address(fields.get(1)?)?.to_string();
    Some((fields.get(9)?.parse().ok()?, ListenSocket { proto: proto.to_owned(), address }))
}

/// Addresses stand there as 32-bit words in the processor's order.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = [0; 16];
    for (word, out) in address.as_bytes().chunks(8).zip(bytes.chunks_mut(4)) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        out.copy_from_slice(&word.to_ne_bytes());
    }
    let ip = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])),
        32 => IpAddr::V6(Ipv6Addr::from(bytes)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use std::io::BufRead;

    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 11 22 0 0 20 0 1 0 333 4444 55 6 0";
        let expected = Stat {
            is_zombie: false,
            parent: 1,
            user_ticks: 11,
            system_ticks: 22,
            start_ticks: 333,
            resident_pages: 55,
            wait_status: None,
        };
        assert_eq!(Stat::parse(stat), Some(expected));
        assert_eq!(name_of(stat), Some("a) b"));
        assert_eq!(Stat::parse("7 (short) S 1"), None);
    }

    /// A shell and a fork of it, which ends as told when the shell's input does.
    fn forked(ends: &str) -> io::Result<(std::process::Child, i32)> {
        use std::process::{Command, Stdio};
        let script = format!("exec 3<&0; (read line <&3; {ends}) & echo $!; wait");
        let mut shell = Command::new("sh");
        let shell = shell.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut shell = shell.spawn()?;
        let mut line = String::new();
        io::BufReader::new(shell.stdout.take().expect("piped")).read_line(&mut line)?;
        Ok((shell, line.trim().parse().expect("an id")))
    }

    #[test]
    fn a_worker_is_a_fork_of_the_same_name_and_its_end_is_told_after_it_was_reaped()
    -> io::Result<()> {
        use WorkerEnd::{Code, Signal, Unknown};
        let ends =
            [("exit 0", Code(0)), ("exit 7", Code(7)), ("exec sh -c 'kill -9 $$'", Signal(9))];
        for (ends, expected) in ends {
            let (mut shell, child) = forked(ends)?;
            let parent = i32::try_from(shell.id()).expect("an id");
            let found = workers(&[parent, child]);
            assert!(matches!(&found[..], [it] if it.pid == child && it.name == "sh"), "{found:?}");
            assert!(workers(&[child]).is_empty(), "its parent is in no Machine");
            assert_eq!(found[0].end(), None);
            drop(shell.stdin.take());
            shell.wait()?;
            let end = found[0].end();
            assert!([Some(expected), Some(Unknown)].contains(&end), "{ends}: {end:?}");
        }
        Ok(())
    }

    #[test]
    fn a_wait_status_is_a_code_or_a_signal() {
        let ends = [0, 7 << 8, 9, 6 | 0x80].map(WorkerEnd::of);
        use WorkerEnd::{Code, Signal};
        assert_eq!(ends, [Code(0), Code(7), Signal(9), Signal(6)]);
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn listeners_are_read_and_others_are_not() {
        let line =
            "  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4711 1";
        let found = parse_socket(line, "tcp", TCP_LISTEN);
        let expected = ListenSocket { proto: "tcp".into(), address: "127.0.0.1:8080".into() };
        assert_eq!(found, Some((4711, expected)));
        assert_eq!(parse_socket(&line.replace(" 0A ", " 01 "), "tcp", TCP_LISTEN), None);
        let six = parse_address("00000000000000000000000001000000:0050").map(|at| at.to_string());
        assert_eq!(six.as_deref(), Some("[::1]:80"));
    }

    #[test]
    fn the_innermost_process_id_counts() {
        assert_eq!(inner_pid("Name:\tx\nNSpid:\t4242\t1\n"), Some(1));
        assert_eq!(inner_pid("Name:\tx\n"), None);
    }
}
