//! `/.fly` in each Machine: `api`, a socket over which the Machine may ask about itself, without a token (AS-92), and
//! `fly-src.pub`, by which it knows who calls (FC-42).
//!
//! The socket lies in the Machine's directory on the host, which is mounted, read-only, into the Machine's root. A new
//! server listens there anew, in the same directory, so Machines that went on meanwhile find it again. Who calls is told
//! by the socket that was called, never by what the request says.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use perch_api::server::MachineCaller;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use super::api::Api;
use super::world::World;

/// Name of the directory in a Machine's own, and of the socket in it.
const DIR: &str = "inside";
const SOCKET: &str = "api";
const MODE: u32 = 0o755;

/// The sockets of Machines that run.
#[derive(Debug, Default)]
pub(crate) struct Inside(Mutex<BTreeMap<String, Listening>>);

/// Ended by its token.
type Listening = (CancellationToken, Arc<UnixListener>);

/// How the names of the sockets begin that a server leaves to the next.
pub(crate) const LEFT: &str = "inside-";

impl Inside {
    fn open(&self) -> MutexGuard<'_, BTreeMap<String, Listening>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The run has ended, or never began.
    pub(crate) fn close(&self, id: &str) {
        if let Some((listening, _)) = self.open().remove(id) {
            listening.cancel();
        }
    }

    /// Copies for the next server, so that who calls meanwhile waits.
    pub(crate) fn leave(&self) -> Vec<(String, OwnedFd)> {
        let open = self.open();
        let copies = open.iter().filter_map(|(id, (_, listener))| {
            Some((format!("{LEFT}{id}"), listener.as_fd().try_clone_to_owned().ok()?))
        });
        copies.collect()
    }
}

/// Listens for a Machine whose run begins or was found: the directory to be mounted. A Machine does without if that
/// cannot be.
pub(crate) fn listen(world: &Arc<World>, app: &str, id: &str) -> Option<PathBuf> {
    let (dir, listener) = prepare(world, id)?;
    serve(world, app, id, listener);
    Some(dir)
}

/// The directory to be mounted, and what to [`serve`] when the run begins.
pub(crate) fn prepare(world: &World, id: &str) -> Option<(PathBuf, UnixListener)> {
    let dir = world.paths.machine(id).join(DIR);
    let left = world.take_left(&format!("{LEFT}{id}"));
    let listening = left.map_or_else(|| bind(&dir), |left| UnixListener::from_std(left.into()));
    match listening.inspect(|_| show(world, id, &dir)) {
        Ok(listener) => Some((dir, listener)),
        Err(error) => {
            tracing::warn!(machine = id, %error, "a Machine starts without /.fly/api");
            None
        }
    }
}

/// Answers from now on.
pub(crate) fn serve(world: &Arc<World>, app: &str, id: &str, listener: UnixListener) {
    let until = world.closing.child_token();
    let caller = MachineCaller::new(app, id);
    let backend = Arc::new(Api::new(world.clone()));
    let ended = until.clone().cancelled_owned();
    let listener = Arc::new(listener);
    if let Some((former, _)) = world.inside.open().insert(id.to_owned(), (until, listener.clone()))
    {
        former.cancel();
    }
    world.tracker.spawn(perch_api::server::serve_machine(listener, caller, backend, ended));
}

/// The directory to be mounted for a run that may begin; nobody listens there yet.
pub(crate) fn place(world: &World, id: &str) -> Option<PathBuf> {
    let dir = world.paths.machine(id).join(DIR);
    make(&dir).ok().map(|()| {
        show(world, id, &dir);
        dir
    })
}

/// Shows the keys of `Fly-Src` as they are now to a Machine that has ever begun to run.
pub(crate) fn show_again(world: &World, id: &str) {
    let dir = world.paths.machine(id).join(DIR);
    if dir.is_dir() {
        show(world, id, &dir);
    }
}

/// A Machine does without if that cannot be.
fn show(world: &World, id: &str, dir: &Path) {
    if let Err(error) = world.signing.show(dir) {
        tracing::warn!(machine = id, %error, "a Machine is not shown the keys of Fly-Src");
    }
}

fn make(dir: &Path) -> io::Result<()> {
    let is_right = |it: fs::Metadata| it.is_dir() && it.permissions().mode() & 0o7777 == MODE;
    // As for each Machine that a new server takes over.
    if fs::metadata(dir).is_ok_and(is_right) {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(MODE).create(dir)?;
    // The umask may have taken away what the Machine's users need.
    fs::set_permissions(dir, fs::Permissions::from_mode(MODE))
}

/// The directory stays what it is, since a Machine that lives has it mounted. Needs a tokio runtime.
fn bind(dir: &Path) -> io::Result<UnixListener> {
    make(dir)?;
    match fs::remove_file(dir.join(SOCKET)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    // A socket's path may have 107 bytes, a data directory's more.
    let held = File::open(dir)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", held.as_raw_fd()));
    let listener = UnixListener::bind(&path)?;
    // Every user in the Machine is its own; on the host nobody else enters the data directory.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_later_server_listens_in_the_same_directory_however_long_its_name_is() {
        let scratch = tempfile::tempdir().expect("a directory");
        let dir = scratch.path().join("d".repeat(200)).join(DIR);
        let first = bind(&dir).expect("it listens");
        let held = File::open(&dir).expect("it is there");
        drop(first);
        let second = bind(&dir).expect("it listens again");
        let path = format!("/proc/self/fd/{}/{SOCKET}", held.as_raw_fd());
        let (called, accepted) =
            tokio::join!(tokio::net::UnixStream::connect(path), second.accept());
        assert!(called.is_ok() && accepted.is_ok());
    }
}
