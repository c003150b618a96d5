//! A directory, a server, and what a run of `fly` printed.

use crate::server::Server;
use perch_cli::{Console, Environment};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// What one run printed, and its exit code.
pub(crate) struct Run {
    pub(crate) code: u8,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// A working directory and perhaps a server.
pub(crate) struct Fixture {
    dir: tempfile::TempDir,
    server: Option<Server>,
}

impl Fixture {
    pub(crate) fn without_server() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary directory"), server: None }
    }

    pub(crate) fn new() -> Self {
        let fixture = Self::without_server();
        let server = Server::start(&fixture.socket());
        Self { server: Some(server), ..fixture }
    }

    /// With the app `web` deployed on two Machines and its `fly.toml` here.
    pub(crate) fn deployed() -> Self {
        let fixture = Self::new();
        oci_layout(&fixture.path("img"));
        let run = fixture.fly(&["launch", "--name", "web", "--image", "oci:img", "-y"]);
        assert_eq!(run.code, 0, "{}\n{}", run.out, run.err);
        fixture
    }

    pub(crate) fn server(&self) -> &Server {
        self.server.as_ref().expect("this fixture has a server")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn socket(&self) -> PathBuf {
        self.path("api.sock")
    }

    pub(crate) fn fly(&self, args: &[&str]) -> Run {
        self.fly_until(std::future::pending(), args)
    }

    /// As if Ctrl-C were pressed when the future resolves.
    pub(crate) fn fly_until(&self, interrupted: impl Future<Output = ()>, args: &[&str]) -> Run {
        self.run(interrupted, args, |console| console)
    }

    /// With something on its standard input.
    pub(crate) fn fly_reading(&self, input: &str, args: &[&str]) -> Run {
        let input = std::io::Cursor::new(input.to_owned());
        self.run(std::future::pending(), args, |console| console.with_input(Box::new(input)))
    }

    fn run(
        &self,
        interrupted: impl Future<Output = ()>,
        args: &[&str],
        equip: impl FnOnce(Console) -> Console,
    ) -> Run {
        self.run_into(Default::default(), interrupted, &[], args, equip)
    }

    /// As if Ctrl-C were pressed as soon as this stands in the output.
    pub(crate) fn fly_until_printed(&self, text: &str, args: &[&str]) -> Run {
        let streams = (Captured::default(), Captured::default());
        let out = streams.0.clone();
        let printed = async {
            while !out.text().contains(text) {
                tokio::task::yield_now().await;
            }
        };
        self.run_into(streams, printed, &[], args, |console| console)
    }

    /// With these variables and no others.
    pub(crate) fn fly_elsewhere(&self, vars: &[(&str, &str)], args: &[&str]) -> Run {
        let mut env = self.environment(vars);
        env.vars.remove("PERCH_SOCKET");
        let (out, err) = (Captured::default(), Captured::default());
        let console = Console::of_streams(Box::new(out.clone()), Box::new(err.clone()));
        let code = self.fly_on(&console, &env, std::future::pending(), args);
        Run { code, out: out.text(), err: err.text() }
    }

    /// With further variables.
    pub(crate) fn fly_in(&self, vars: &[(&str, &str)], args: &[&str]) -> Run {
        self.run_into(Default::default(), std::future::pending(), vars, args, |console| console)
    }

    fn run_into(
        &self,
        (out, err): (Captured, Captured),
        interrupted: impl Future<Output = ()>,
        vars: &[(&str, &str)],
        args: &[&str],
        equip: impl FnOnce(Console) -> Console,
    ) -> Run {
        let console = Console::of_streams(Box::new(out.clone()), Box::new(err.clone()));
        let code = self.fly_on(&equip(console), &self.environment(vars), interrupted, args);
        Run { code, out: out.text(), err: err.text() }
    }

    /// With a console and variables of the test's own.
    pub(crate) fn fly_on(
        &self,
        console: &Console,
        env: &Environment,
        interrupted: impl Future<Output = ()>,
        args: &[&str],
    ) -> u8 {
        let args = std::iter::once("fly").chain(args.iter().copied()).map(Into::into).collect();
        perch_cli::run_until(interrupted, args, env, console)
    }

    /// The server's socket and these variables, in this directory.
    pub(crate) fn environment(&self, vars: &[(&str, &str)]) -> Environment {
        let socket = self.socket().display().to_string();
        let mut vars: BTreeMap<_, _> =
            vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        vars.insert("PERCH_SOCKET".to_owned(), socket);
        Environment { dir: self.dir.path().to_owned(), vars }
    }
}

#[derive(Clone, Default)]
pub(crate) struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("no writer panics")).into_owned()
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no writer panics").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Writes an OCI layout with one empty layer.
pub(crate) fn oci_layout(dir: &Path) {
    std::fs::create_dir_all(dir.join("blobs/sha256")).expect("the directory is ours");
    let blob = |media_type: &str, bytes: &[u8]| -> Value {
        let hash = Sha256::digest(bytes);
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        std::fs::write(dir.join("blobs/sha256").join(&hex), bytes).expect("the directory is ours");
        json!({"mediaType": media_type, "digest": format!("sha256:{hex}"), "size": bytes.len()})
    };
    let config = blob("application/vnd.oci.image.config.v1+json", b"{\"config\": {}}");
    let layer = blob("application/vnd.oci.image.layer.v1.tar", &[0; 1024]);
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    let manifest = blob(media_type, manifest.to_string().as_bytes());
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    std::fs::write(dir.join("index.json"), index.to_string()).expect("the directory is ours");
}
