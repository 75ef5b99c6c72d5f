//! Encrypted connections that cannot be made, now or later.

use std::{error::Error, io};

/// Why no other attempt would end otherwise than with `error`, if it is about a certificate or about what both sides
/// speak of TLS; else, trying again may help.
pub(super) fn permanent(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(hint) = error.downcast_ref::<rustls::Error>().and_then(hint) {
            return Some(hint);
        }
        // The source of an I/O error is that of the error in it, which itself would be passed over.
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

fn hint(error: &rustls::Error) -> Option<&'static str> {
    match error {
        rustls::Error::InvalidCertificate(_)
        | rustls::Error::NoCertificatesPresented
        | rustls::Error::UnsupportedNameType => Some(
            "who answered is not known to be that host: look at this machine's clock, at the certificates that it \
             trusts, and at what stands between, such as a proxy or a login page",
        ),
        rustls::Error::PeerIncompatible(_) => Some("it speaks no TLS that this program does"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{Network, NetworkConfig, Proxies, Wait, retrying, testing::FakeTimer};
    use llm_local_core::Request;
    use rustls::{
        CertificateError, ServerConfig, ServerConnection,
        pki_types::{CertificateDer, PrivatePkcs8KeyDer},
    };
    use std::{net::TcpListener, sync::Arc};

    /// As it comes from a connection: two I/O errors around it.
    fn wrapped(error: rustls::Error) -> io::Error {
        io::Error::other(io::Error::new(io::ErrorKind::InvalidData, error))
    }

    #[test]
    fn a_certificate_that_is_not_good_is_no_better_at_another_time() {
        for reason in [
            CertificateError::Expired,
            CertificateError::NotValidForName,
            CertificateError::UnknownIssuer,
            CertificateError::Revoked,
            CertificateError::BadSignature,
        ] {
            let error = wrapped(rustls::Error::InvalidCertificate(reason.clone()));
            assert!(permanent(&error).is_some_and(|hint| hint.contains("clock")), "{reason:?}");
        }
        assert!(permanent(&wrapped(rustls::Error::NoCertificatesPresented)).is_some());
        for passing in [
            io::Error::from(io::ErrorKind::ConnectionReset),
            io::Error::new(io::ErrorKind::UnexpectedEof, "tls handshake eof"),
            wrapped(rustls::Error::DecryptError),
        ] {
            assert_eq!(permanent(&passing), None, "{passing:?}");
        }
    }

    /// A host of this machine with a certificate that it signed itself, good until 2126:
    /// `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 36500 -subj /CN=localhost
    /// -addext subjectAltName=DNS:localhost,IP:127.0.0.1`. Gives its port, and how many connections it got in the end.
    fn untrusted() -> (u16, std::thread::JoinHandle<usize>) {
        let certificate = CertificateDer::from(include_bytes!("tls/untrusted.crt").as_slice());
        let key = PrivatePkcs8KeyDer::from(include_bytes!("tls/untrusted.key").as_slice());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = Arc::new(config.with_no_client_auth().with_single_cert(vec![certificate], key.into()).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = std::thread::spawn(move || {
            let mut count = 0;
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut server = ServerConnection::new(config.clone()).unwrap();
                // A connection without a word of TLS ends it.
                let handshake = server.complete_io(&mut stream).unwrap_err();
                if handshake.kind() == io::ErrorKind::UnexpectedEof {
                    return count;
                }
                count += 1;
            }
            count
        });
        (port, serving)
    }

    #[test]
    fn a_host_that_is_not_trusted_is_asked_once() {
        let (port, serving) = untrusted();
        let timer = FakeTimer::new();
        let config = NetworkConfig::new().with_proxies(Proxies::none());
        let network = Network::new(config).with_timer(Arc::new(timer.clone()));
        let inner = network.clone();
        let error = pollster::block_on(network.run(async move {
            let request = Request::new(format!("https://127.0.0.1:{port}/a?sig=abc"));
            retrying(&inner, "a.bin", || async { inner.get(&request, &[]).await.map(drop) }).await
        }));
        let error = error.unwrap_err();
        drop(std::net::TcpStream::connect(("127.0.0.1", port)).unwrap());
        assert_eq!((serving.join().unwrap(), timer.sleeps(Wait::Backoff)), (1, vec![]));
        let text = error.to_string();
        assert!(!error.is_retryable() && text.contains("certificate") && text.contains("clock"), "{text}");
        assert!(!format!("{error:?}{error}").contains("abc"), "{error:?}");
    }
}
