//! The two programs of `wake`, as root file systems that every contender uses.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::shell;

/// A program with everything it needs.
pub(crate) struct Program {
    /// What the figures call it.
    pub(crate) name: &'static str,
    /// The directory that is its root.
    pub(crate) root: PathBuf,
    /// Arguments inside the root.
    pub(crate) argv: Vec<String>,
    /// The same program on the host.
    pub(crate) bare: Vec<String>,
    /// Where it listens.
    pub(crate) port: u16,
}

/// A small server; each request has a connection of its own.
const PYTHON: &str = "\
import os, socket
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header('Content-Length', '6')
        self.end_headers()
        self.wfile.write(b'hello\\n')
    def log_message(self, *args):
        pass

held = [os.urandom(1 << 20) for _ in range(int(os.environ.get('HOLD_MB', '0')))]
own = 'LISTEN_STDIN' not in os.environ
server = HTTPServer(('0.0.0.0', 8082), Handler, bind_and_activate=own)
if not own:
    server.socket = socket.socket(fileno=0)
server.serve_forever()
";

/// Tells both programs that standard input is the socket they listen on.
pub(crate) const INHERIT: &str = "LISTEN_STDIN";

/// Parts of the standard library that are large and that the server does not import.
const UNUSED: &[&str] =
    &["test", "idlelib", "tkinter", "ensurepip", "lib2to3", "pydoc_data", "__pycache__"];

/// The example app of this workspace: static, native.
pub(crate) fn native(dir: &Path) -> Result<Program> {
    let root = dir.join("native");
    fs::create_dir_all(&root)?;
    let bare = perch_testkit::hello_binary()?;
    fs::copy(&bare, root.join("hello")).with_context(|| format!("copying {}", bare.display()))?;
    let bare = vec![bare.to_string_lossy().into_owned()];
    Ok(Program { name: "native", root, argv: vec!["/hello".to_owned()], bare, port: 8080 })
}

/// Debian's Python with a small server.
pub(crate) fn python(dir: &Path) -> Result<Program> {
    let root = dir.join("python");
    fs::create_dir_all(&root)?;
    let interpreter = interpreter()?;
    copy(&interpreter, &root)?;
    for library in libraries(&interpreter)? {
        copy(&library, &root)?;
    }
    let version = interpreter.file_name().context("no name")?.to_string_lossy().into_owned();
    copy_library(&Path::new("/usr/lib").join(&version), &root)?;
    compile(&interpreter, &root.join("usr/lib").join(version))?;
    for (link, to) in [("lib", "usr/lib"), ("lib64", "usr/lib64")] {
        if !root.join(link).exists() {
            symlink(to, root.join(link))?;
        }
    }
    let script = dir.join("server.py");
    fs::write(&script, PYTHON)?;
    fs::write(root.join("server.py"), PYTHON)?;
    let program = interpreter.to_string_lossy().into_owned();
    Ok(Program {
        name: "python",
        root,
        argv: vec![program.clone(), "/server.py".to_owned()],
        bare: vec![program, script.to_string_lossy().into_owned()],
        port: 8082,
    })
}

/// Debian's, whatever else is first on the path.
fn interpreter() -> Result<PathBuf> {
    fs::canonicalize("/usr/bin/python3").context("finding Debian's python3")
}

/// Compiles the library so that times of files do not matter: an archive does not keep them, and
/// compiling at every start would be all that we measure.
fn compile(interpreter: &Path, library: &Path) -> Result<()> {
    let mode = ["-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"];
    shell::output(Command::new(interpreter).args(mode).arg(library)).map(drop)
}

/// What the dynamic linker would load.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let list = shell::output(Command::new("ldd").arg(program))?;
    let paths = list.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(PathBuf::from).collect())
}

/// Copies a file to the same place below `root`, with `/lib` merged into `/usr/lib`.
fn copy(file: &Path, root: &Path) -> Result<()> {
    let inner = file.strip_prefix("/")?;
    let merged = if inner.starts_with("usr") { inner.into() } else { Path::new("usr").join(inner) };
    let to = root.join(merged);
    fs::create_dir_all(to.parent().context("no parent")?)?;
    fs::copy(file, &to).with_context(|| format!("copying {}", file.display()))?;
    Ok(())
}

fn copy_library(dir: &Path, root: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if UNUSED.contains(&name.as_str()) || name.starts_with("config-") {
            continue;
        }
        match entry.file_type()? {
            kind if kind.is_dir() => copy_library(&entry.path(), root)?,
            kind if kind.is_file() => copy(&entry.path(), root)?,
            _ => {}
        }
    }
    Ok(())
}
