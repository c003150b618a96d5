//! Runs that are made ready ahead: all is done but the start of the program.
//!
//! ```text
//!  arm ─► shim: lock `armed.lock`, container, init waits at its gate ─► "armed" … "go" ─► lock `lock` ─► gate opens
//!                                                                       └─ the line closes ─► all of it ends
//! ```
//!
//! Such a run is none yet: the Machine is stopped to everybody, its files tell of the former run, and who would adopt
//! finds nothing. The line between launcher and shim is what keeps it: when the launcher lets go, or dies, the shim kills
//! the container and ends. From "go" on all is as in a usual start, so a launcher that dies then leaves what a usual start
//! would leave. The program is executed after "go" or never, and a run that was not told "go" leaves no trace.

use sha2::{Digest as _, Sha256};

use super::*;

/// How long a run may take to be ready. It is nobody's wish, so it is given up earlier than a start.
const ARM_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one may take to end by itself whose launcher has let go; usually it is a few milliseconds.
const DISARM_TIMEOUT: Duration = Duration::from_secs(2);
/// What a shim that waits is told.
pub(crate) const GO: &[u8] = b"go\n";

/// A run that is ready to start. Dropping it ends it.
#[derive(Debug)]
pub struct Armed {
    spec: LaunchSpec,
    /// Of the secrets; they themselves are kept by the shim alone.
    secrets: [u8; 32],
    /// Found ahead: the table of mounts is long, and somebody waits for the start.
    cgroups: Cgroups,
    shim: Line,
}

/// Makes a run ready: everything that [`launch_with`] does before the program is executed. It costs about as much time,
/// two small processes, and a cgroup and mounts as of a run.
///
/// Needs a tokio runtime. The specification may have no volumes: they are of whoever runs.
///
/// # Errors
/// As of [`launch_with`]; then nothing is left.
pub async fn arm(
    spec: &LaunchSpec,
    netns: BorrowedFd<'_>,
    secrets: &Secrets,
) -> Result<Armed, LaunchError> {
    check(spec, secrets)?;
    if !spec.volumes.is_empty() {
        let reason = "what has volumes is not made ready ahead".to_owned();
        return Err(LaunchError::BadSpec { machine: spec.machine.clone(), reason });
    }
    ensure_over(spec).await?;
    files::write(&spec.dir, ARMED_FILE, spec)
        .map_err(io_error("write", &spec.dir.join(ARMED_FILE)))?;
    let spawned = spawn_shim(spec, netns, Way::Armed);
    let spawned = spawned.map_err(io_error("start the shim of", &spec.dir))?;
    fault::pass(Point::ServerArmSpawned);
    let ready = async {
        let mut shim = greet(spawned, secrets).await?;
        hear(&mut shim).await.map(|answer| (answer, shim))
    };
    let late = |_| io::Error::other(format!("no answer within {} s", ARM_TIMEOUT.as_secs()));
    let ready = tokio::time::timeout(ARM_TIMEOUT, ready).await.map_err(late);
    let reason = match ready.and_then(|ready| ready) {
        Ok((Answer::Armed, shim)) => {
            fault::pass(Point::ServerArmed);
            let cgroups = Place::of(spec).cgroups()?;
            return Ok(Armed { spec: spec.clone(), secrets: print_of(secrets), cgroups, shim });
        }
        Ok((other, _)) => reason_of(spec, Ok(other)),
        Err(error) => reason_of(spec, Err(error)),
    };
    let place = Place::of(spec);
    end(&place).await?;
    clean(&place, &place.cgroups()?).await?;
    Err(failed(spec, reason))
}

impl Armed {
    /// What it was made for.
    pub fn spec(&self) -> &LaunchSpec {
        &self.spec
    }

    /// Whether a start with these would do what was done already. Everything counts.
    pub fn is_for(&self, spec: &LaunchSpec, secrets: &Secrets) -> bool {
        self.spec == *spec && self.secrets == print_of(secrets)
    }

    /// Whether it still waits, as far as is known.
    pub fn waits(&self) -> bool {
        let mut byte = [0];
        let read = self.shim.get_ref().try_read(&mut byte);
        matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Starts the program: from here on it is a run as [`launch_with`] makes it. `None` if what was ready had ended before:
    /// then nothing of the program was executed, and nothing is in the way of a usual start. Waits for nobody.
    ///
    /// # Errors
    /// As of [`launch_with`].
    pub fn go(self) -> Result<Option<Going>, LaunchError> {
        let spec = &self.spec;
        let place = Place::of(spec);
        if place.is_locked()? {
            return Err(LaunchError::AlreadyRunning { machine: place.machine, run: spec.run });
        }
        fault::pass(Point::ServerGateReady);
        // All that the line has carried is the secrets, so there is room for a word.
        match self.shim.get_ref().try_write(GO) {
            Ok(length) if length == GO.len() => {}
            written => {
                tracing::debug!(machine = spec.machine, ?written, "what was ready has ended");
                return Ok(None);
            }
        }
        fault::pass(Point::ServerGateOpened);
        Ok(Some(Going(self)))
    }

    /// Ends it, and returns when nothing of it is left.
    pub async fn disarm(self) {
        let ended = async {
            let mut shim = self.shim.into_inner();
            shim.shutdown().await?;
            // The shim's end closes the line; what it says before is of no interest any more.
            tokio::io::copy(&mut shim, &mut tokio::io::sink()).await
        };
        match tokio::time::timeout(DISARM_TIMEOUT, ended).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::debug!(machine = self.spec.machine, %error, "it has ended already");
            }
            // Whoever wants the directory next kills it.
            Err(_) => tracing::warn!(machine = self.spec.machine, "what was ready does not end"),
        }
    }
}

/// A run that was ready and was told to go.
#[derive(Debug)]
pub struct Going(Armed);

impl Going {
    /// The run, once its shim has heard. `None` if that had ended before, as of [`Armed::go`].
    ///
    /// # Errors
    /// As of [`launch_with`]; then nothing is left running.
    pub async fn started(self) -> Result<Option<Machine>, LaunchError> {
        let Self(Armed { spec, cgroups, mut shim, .. }) = self;
        let reason = match within(START_TIMEOUT, hear(&mut shim)).await {
            Ok(Answer::Started(state)) => {
                discard_former_files(&spec);
                return Machine::alive(spec, state, cgroups).map(Some);
            }
            Ok(Answer::Disarmed) => return Ok(None),
            other => reason_of(&spec, other),
        };
        let place = Place::of(&spec);
        end(&place).await?;
        super::end(&place).await?;
        Err(failed(&spec, reason))
    }
}

fn print_of(secrets: &Secrets) -> [u8; 32] {
    Sha256::digest(secrets.packed()).into()
}

/// Waits until nothing that was made ready is left in a directory: it ends with its launcher. What does not is killed.
pub(super) async fn end(place: &Place) -> Result<(), LaunchError> {
    if !is_armed(place)? || ends_within(place, DISARM_TIMEOUT).await? {
        return Ok(());
    }
    tracing::warn!(machine = place.machine, "what was made ready does not end; it is killed");
    match open_holder(&place.dir, ARMED_LOCK_FILE) {
        Ok(Some(shim)) => {
            let killed = rustix::process::pidfd_send_signal(&shim, Signal::KILL);
            killed.map_err(|error| io_error("kill the shim of", &place.dir)(error.into()))?;
        }
        Ok(None) => {}
        Err(error) => {
            tracing::debug!(%error, machine = place.machine, "its shim ends with the rest");
        }
    }
    clean(place, &place.cgroups()?).await?;
    match ends_within(place, CLEAN_TIMEOUT).await? {
        true => Ok(()),
        false => Err(place.failed("the shim of what was made ready does not end")),
    }
}

fn is_armed(place: &Place) -> Result<bool, LaunchError> {
    is_file_locked(&place.dir, ARMED_LOCK_FILE).map_err(io_error("lock", &place.dir))
}

/// There is nothing to be notified by.
async fn ends_within(place: &Place, timeout: Duration) -> Result<bool, LaunchError> {
    let ended = async {
        while is_armed(place)? {
            tokio::time::sleep(CLEAN_INTERVAL).await;
        }
        Ok(())
    };
    tokio::time::timeout(timeout, ended).await.map_or(Ok(false), |ended| ended.map(|()| true))
}
