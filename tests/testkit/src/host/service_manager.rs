//! As much of systemd as the server can tell from outside: a notification socket, and a store of
//! descriptors that the next server is born with.

use std::fmt::Write;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// The protocol's first descriptor.
const FIRST: usize = 3;
/// Copies for a child are made from here on, above those that it is to have.
const ASIDE: i32 = 100;

/// The reader of a socket looks this often whether it is still wanted.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Keeps what the server hands over.
pub(super) struct ServiceManager {
    path: PathBuf,
    store: Arc<Mutex<Store>>,
}

struct Store {
    socket: UnixDatagram,
    kept: Vec<(String, OwnedFd)>,
}

impl ServiceManager {
    pub(super) fn new(dir: &Path) -> Result<Self> {
        let path = dir.join("notify.sock");
        let socket = UnixDatagram::bind(&path).context("binding the notification socket")?;
        socket.set_nonblocking(true)?;
        let waiting = socket.try_clone()?;
        let store = Arc::new(Mutex::new(Store { socket, kept: Vec::new() }));
        let weak = Arc::downgrade(&store);
        // The kernel queues ten datagrams at most; a server that sends more waits for a reader.
        thread::spawn(move || read_on(&waiting, &weak));
        Ok(Self { path, store })
    }

    /// Puts what this command is born with into its environment. The second answer must live until the
    /// command runs.
    pub(super) fn equip(&self, command: &Command) -> Result<(Command, Vec<OwnedFd>)> {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        store.collect()?;
        let mut copies = Vec::new();
        let mut places = String::new();
        for (number, (_name, fd)) in store.kept.iter().enumerate() {
            let copy = fcntl_dupfd_cloexec(fd, ASIDE)?;
            fcntl_setfd(&copy, FdFlags::empty())?;
            let aside = copy.as_raw_fd();
            write!(places, " {}<&{aside} {aside}<&-", FIRST + number)?;
            copies.push(copy);
        }
        let names: Vec<&str> = store.kept.iter().map(|(name, _fd)| name.as_str()).collect();
        // A shell, because only the process itself knows its id inside the host.
        let script = format!("export LISTEN_PID=$$; exec \"$@\"{places}");
        let inner: Vec<_> = command.get_args().collect();
        let program = inner.iter().position(|arg| *arg == "-C").context("no env -C")? + 2;
        let mut equipped = Command::new(command.get_program());
        equipped.args(&inner[..program]).args(["bash", "-c", &script, "bash"]);
        equipped.args(&inner[program..]);
        equipped.env("NOTIFY_SOCKET", &self.path);
        if !names.is_empty() {
            equipped.env("LISTEN_FDS", names.len().to_string());
            equipped.env("LISTEN_FDNAMES", names.join(":"));
        }
        Ok((equipped, copies))
    }
}

impl Store {
    /// Takes everything that the server has sent so far.
    fn collect(&mut self) -> Result<()> {
        while let Some((text, fds)) = receive(&self.socket)? {
            let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
            let name = value("FDNAME=").unwrap_or("stored").to_owned();
            if value("FDSTOREREMOVE=").is_some() {
                self.kept.retain(|(kept, _fd)| *kept != name);
            }
            if value("FDSTORE=").is_some() {
                self.kept.retain(|(kept, _fd)| *kept != name);
                self.kept.extend(fds.into_iter().map(|fd| (name.clone(), fd)));
            }
        }
        Ok(())
    }
}

fn read_on(socket: &UnixDatagram, store: &Weak<Mutex<Store>>) {
    while let Some(store) = store.upgrade() {
        if let Err(error) = store.lock().unwrap_or_else(PoisonError::into_inner).collect() {
            eprintln!("service manager: {error:#}");
            return;
        }
        drop(store);
        // Readable, timed out or interrupted: each time there is a look.
        poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&LOOK)).ok();
    }
}

fn receive(socket: &UnixDatagram) -> Result<Option<(String, Vec<OwnedFd>)>> {
    let mut bytes = [0_u8; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let read = match recvmsg(socket.as_fd(), &mut parts, &mut ancillary, flags) {
        Ok(read) => read.bytes,
        Err(rustix::io::Errno::AGAIN) => return Ok(None),
        Err(errno) => return Err(errno).context("reading the notification socket"),
    };
    let fds = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fds = fds.flatten().collect();
    Ok(Some((String::from_utf8_lossy(&bytes[..read]).into_owned(), fds)))
}
