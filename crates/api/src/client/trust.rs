//! Whom the client believes: the system's certificates, or those of a file.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::tls;

/// Where distributions keep the certificates of the world: Debian, Red Hat, SUSE, Alpine.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Speaks TLS on a connection to `host`.
pub(super) async fn secure(
    stream: TcpStream,
    host: &str,
    config: Arc<ClientConfig>,
) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    TlsConnector::from(config).connect(name, stream).await
}

/// Believes certificates that descend from one in the file `roots`, or else in the system's bundle.
pub(super) fn config(roots: Option<&Path>) -> io::Result<Arc<ClientConfig>> {
    let roots = read(&bundle(roots)?)?;
    let config = ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(tls::VERSIONS)
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn bundle(given: Option<&Path>) -> io::Result<PathBuf> {
    let found = || BUNDLES.iter().map(PathBuf::from).find(|bundle| bundle.exists());
    given.map(Path::to_owned).or_else(found).ok_or_else(|| {
        io::Error::other(
            "this system has no certificates to trust; install ca-certificates, or set SSL_CERT_FILE",
        )
    })
}

fn read(bundle: &Path) -> io::Result<RootCertStore> {
    let failed = |error: &dyn std::fmt::Display| {
        io::Error::other(format!("could not read {} as PEM: {error}", bundle.display()))
    };
    let certificates = CertificateDer::pem_file_iter(bundle).map_err(|error| failed(&error))?;
    let certificates: Vec<_> = certificates.collect::<Result<_, _>>().map_err(|e| failed(&e))?;
    let mut roots = RootCertStore::empty();
    // Bundles hold a few that are too old to be parsed.
    let (added, _) = roots.add_parsable_certificates(certificates);
    if added == 0 {
        return Err(failed(&"it holds no certificate that can be used"));
    }
    Ok(roots)
}
