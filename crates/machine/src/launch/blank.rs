//! Shims that are spawned before there is a Machine for them, and the starts that take one.
//!
//! ```text
//!  stock ─► spawn ─► "blank" … order, descriptors, secrets ─► "taken" ─► "started"
//!                            │                              └─ none: begin anew, the usual way
//!                            └─ the stock is dropped: it ends
//! ```
//!
//! A blank is an expedient: what goes wrong before it says that it has taken the Machine costs time, and never a start.
//! Until then the program has not been executed. From "taken" on all is as in a usual start.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use super::*;

/// How long one may take to be ready. It is nobody's wish.
const MAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one may take to make a Machine: usually some milliseconds, on a host in great need a second. The usual way may
/// take longer.
const TAKE_TIMEOUT: Duration = Duration::from_secs(3);

/// What a blank is told, with the network namespace and the file for its words.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    /// The Machine's directory.
    pub(crate) dir: PathBuf,
}

/// A shim without a Machine. Dropping it ends it.
#[derive(Debug)]
struct Blank {
    shim: Line,
    process: ProcessId,
}

/// Why a blank has not started a Machine.
enum Missed {
    /// Nothing was executed: another way may do.
    Blank(io::Error),
    /// No way would.
    Start((String, Fault)),
}

/// Blanks that wait. Dropping it ends them.
#[derive(Debug)]
pub struct Stock {
    cgroup_parent: String,
    len_max: usize,
    blanks: Mutex<Vec<Blank>>,
    /// Held while one is made: they are made one after the other.
    making: tokio::sync::Mutex<()>,
}

impl Stock {
    /// An empty one, for Machines with this [`LaunchSpec::cgroup_parent`].
    pub fn new(cgroup_parent: String, len_max: usize) -> Self {
        Self { cgroup_parent, len_max, blanks: Mutex::default(), making: Default::default() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Blank>> {
        self.blanks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many wait, as far as is known.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes one blank, unless there are enough; says whether. To be called when nothing is urgent: the kernel lets nobody
    /// else make a cgroup meanwhile, for about 15 ms. Removes what dead ones left, too.
    ///
    /// # Errors
    /// When it cannot be made. Starts are not the worse for it.
    pub async fn add(&self) -> Result<bool, LaunchError> {
        let _making = self.making.lock().await;
        let parent = Path::new(&self.cgroup_parent);
        cgroup::blank::sweep(&self.cgroup_parent)
            .map_err(io_error("clear cgroups below", parent))?;
        self.lock().retain(Blank::waits);
        if self.len_max <= self.len() {
            return Ok(false);
        }
        let made = Blank::make(&self.cgroup_parent).await;
        let made = made.map_err(io_error("make a blank shim for", parent))?;
        self.lock().push(made);
        Ok(true)
    }

    /// One that lives, as far as is known.
    fn take(&self) -> Option<Blank> {
        let mut blanks = self.lock();
        std::iter::from_fn(|| blanks.pop()).find(Blank::waits)
    }
}

/// As [`launch_with`], by a blank if there is one.
///
/// # Errors
/// As of [`launch_with`]; a blank adds none.
pub async fn launch_from(
    spec: &LaunchSpec,
    netns: BorrowedFd<'_>,
    secrets: &Secrets,
    stock: &Stock,
) -> Result<Machine, LaunchError> {
    begin(spec, secrets).await?;
    while let Some(blank) = stock.take() {
        let process = blank.process;
        match blank.start(spec, netns, secrets).await {
            Ok(state) => return begun(spec, state),
            Err(Missed::Start(reason)) => {
                end(&Place::of(spec)).await?;
                return Err(failed(spec, reason));
            }
            Err(Missed::Blank(error)) => {
                tracing::warn!(machine = spec.machine, %error, "a blank shim is passed over");
                process.kill().map_err(io_error("kill the blank shim of", &spec.dir))?;
                end(&Place::of(spec)).await?;
            }
        }
    }
    go_on(spec, netns, secrets).await
}

impl Blank {
    async fn make(cgroup_parent: &str) -> io::Result<Self> {
        let (near, far) = StdStream::pair()?;
        let mut command = role_command("blank");
        command.arg(cgroup_parent).stdin(Stdio::null()).stdout(OwnedFd::from(far));
        let spawned = command.stderr(Stdio::null()).spawn()?;
        near.set_nonblocking(true)?;
        let mut shim = BufReader::new(UnixStream::from_std(near)?);
        reap(spawned)?;
        fault::pass(Point::ServerBlankSpawned);
        match within(MAKE_TIMEOUT, hear(&mut shim)).await? {
            Answer::Blank(process) => Ok(Self { shim, process }),
            Answer::Failed { reason, .. } => Err(io::Error::other(reason)),
            other => Err(io::Error::other(format!("it answered out of turn: {other:?}"))),
        }
    }

    fn waits(&self) -> bool {
        let mut byte = [0];
        let read = self.shim.get_ref().try_read(&mut byte);
        matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    async fn start(
        mut self,
        spec: &LaunchSpec,
        netns: BorrowedFd<'_>,
        secrets: &Secrets,
    ) -> Result<ShimState, Missed> {
        let taken = async {
            self.order(spec, netns)?;
            fault::pass(Point::ServerBlankTaken);
            self.shim.write_all(&secrets.packed()).await?;
            hear(&mut self.shim).await
        };
        match within(TAKE_TIMEOUT, taken).await {
            Ok(Answer::Taken) => {}
            Ok(Answer::Failed { reason, fault: Fault::Image }) => {
                return Err(Missed::Start((reason, Fault::Image)));
            }
            Ok(Answer::Failed { reason, .. }) => {
                return Err(Missed::Blank(io::Error::other(reason + &last_words(spec))));
            }
            Ok(other) => {
                let text = format!("it answered out of turn: {other:?}");
                return Err(Missed::Blank(io::Error::other(text)));
            }
            Err(error) => return Err(Missed::Blank(error)),
        }
        match within(START_TIMEOUT, hear(&mut self.shim)).await {
            Ok(Answer::Started(state)) => Ok(state),
            other => Err(Missed::Start(reason_of(spec, other))),
        }
    }

    /// Hands over the Machine's directory, its network namespace, and the file for what the shim has to say.
    fn order(&self, spec: &LaunchSpec, netns: BorrowedFd<'_>) -> io::Result<()> {
        let words = shim_log(spec)?;
        let descriptors = [netns, words.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut parcel = SendAncillaryBuffer::new(&mut space);
        if !parcel.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::Error::other("descriptors do not fit into their message"));
        }
        let text = serde_json::to_vec(&Order { dir: spec.dir.clone() })?;
        let line = self.shim.get_ref();
        let sent =
            rustix::net::sendmsg(line, &[IoSlice::new(&text)], &mut parcel, SendFlags::NOSIGNAL)?;
        // Nothing was sent before, so there is room.
        if sent == text.len() { Ok(()) } else { Err(io::Error::other("the order was cut")) }
    }
}
