//! From when until when a certificate is good, and the sentence for one that is not good today.
//!
//! [`identity`](crate::identity) checks the dates when files are loaded, [`pinning`](crate::pinning) again at
//! every handshake. It never asks the clock itself, except to count years from today for a new certificate.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// From when until when a certificate is to be good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first moment.
    pub from: SystemTime,
    /// The last moment.
    pub until: SystemTime,
}

impl Validity {
    /// Good for so many years from now, and for the last hour, since the clocks of two hosts differ.
    pub fn years(years: u16) -> Self {
        const YEAR: Duration = Duration::from_secs(365 * 24 * 3600 + 6 * 3600);
        const CLOCK_SKEW: Duration = Duration::from_secs(3600);
        let now = SystemTime::now();
        Self {
            from: now - CLOCK_SKEW,
            until: now + YEAR * u32::from(years),
        }
    }
}

/// Whether `now` lies within the dates of the certificate that messages call `label`.
pub(crate) fn check_dates(
    dates: &x509_parser::certificate::Validity,
    label: &str,
    now: SystemTime,
) -> Result<(), DateError> {
    let seconds = i64::try_from(since_epoch(now).as_secs()).unwrap_or(i64::MAX);
    let label = label.to_owned();
    if seconds < dates.not_before.timestamp() {
        return Err(DateError::NotYetValid {
            label,
            from: Day::of(dates.not_before),
        });
    }
    if seconds > dates.not_after.timestamp() {
        return Err(DateError::Expired {
            label,
            at: Day::of(dates.not_after),
        });
    }
    Ok(())
}

/// A moment in a certificate, printed as people write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Day {
    year: i32,
    month: u8,
    day: u8,
    hour: u8,
    minute: u8,
}

impl Day {
    fn of(time: x509_parser::time::ASN1Time) -> Self {
        let at = time.to_datetime();
        Self {
            year: at.year(),
            month: at.month().into(),
            day: at.day(),
            hour: at.hour(),
            minute: at.minute(),
        }
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            year,
            month,
            day,
            hour,
            minute,
        } = self;
        write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
    }
}

/// A certificate is not good today.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DateError {
    /// Its last moment is over.
    #[error("The certificate {label} expired at {at}; make a new one with `lockstep keys`")]
    Expired {
        /// Which certificate.
        label: String,
        /// Its last moment.
        at: Day,
    },
    /// Its first moment is still to come.
    #[error("The certificate {label} is not valid before {from}; is the clock of this host right?")]
    NotYetValid {
        /// Which certificate.
        label: String,
        /// Its first moment.
        from: Day,
    },
}

pub(crate) fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO)
}
