//! TLS for callers from beyond this host: 1.3 only, by rustls with ring.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::tls;

/// The server's side of TLS. Clones are one: they change together.
#[derive(Clone)]
pub struct Tls(Arc<RwLock<Arc<ServerConfig>>>);

/// Why TLS is not possible with these files.
#[derive(Debug, thiserror::Error)]
pub enum BadTls {
    /// A file could not be read as PEM.
    #[error("could not read {} as PEM", file.display())]
    Pem {
        /// Which.
        file: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// A file without a certificate.
    #[error("{} holds no certificate", file.display())]
    Empty {
        /// Which.
        file: PathBuf,
    },
    /// They do not fit each other, or are of a kind that is not supported.
    #[error("{} and {} cannot be used together", certificate.display(), key.display())]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's.
        key: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

impl Tls {
    /// Reads a certificate, with those between it and its root, and its key.
    ///
    /// # Errors
    /// See [`BadTls`].
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, BadTls> {
        let bad = |file: &Path| {
            let file = file.to_owned();
            |source| BadTls::Pem { file, source }
        };
        let chain = CertificateDer::pem_file_iter(certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(bad(certificate))?;
        if chain.is_empty() {
            return Err(BadTls::Empty { file: certificate.to_owned() });
        }
        let private = PrivateKeyDer::from_pem_file(key).map_err(bad(key))?;
        let pair = |source| BadTls::Pair {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            source,
        };
        let mut config = ServerConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(tls::VERSIONS)
            .map_err(pair)?
            .with_no_client_auth()
            .with_single_cert(chain, private)
            .map_err(pair)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(Arc::new(RwLock::new(Arc::new(config)))))
    }

    /// Shows the certificate of `other` from the next connection on; those that are there go on.
    pub fn replace(&self, other: &Self) {
        let config = other.config();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = config;
    }

    fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> io::Result<TlsStream<S>> {
        TlsAcceptor::from(self.config()).accept(stream).await
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}
