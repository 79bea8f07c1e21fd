//! The time of day, for dates of expiry and of bills. Tests set it.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

/// Tells the time of day.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

// === impl Clock ===

impl Clock {
    /// This machine's clock.
    #[must_use]
    pub fn system() -> Self {
        Self::new(|| {
            #[expect(clippy::disallowed_methods, reason = "this is the edge")]
            let now = std::time::SystemTime::now();
            // Fails in the year 10 000 only.
            Timestamp::try_from(now).unwrap_or(Timestamp::MAX)
        })
    }

    /// A clock that asks `now`.
    #[must_use]
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }

    /// Now, in Unix seconds.
    #[must_use]
    pub fn unix_seconds(&self) -> i64 {
        (self.0)().as_second()
    }

    /// Today in UTC.
    #[must_use]
    pub fn today(&self) -> Date {
        (self.0)().to_zoned(TimeZone::UTC).date()
    }

    /// How long the current month in UTC still lasts, in whole seconds.
    #[must_use]
    pub fn seconds_left_of_month(&self) -> u64 {
        let now = (self.0)();
        let next = now
            .to_zoned(TimeZone::UTC)
            .last_of_month()
            .and_then(|day| day.tomorrow())
            .and_then(|day| day.start_of_day());
        let left = next.map_or(0, |next| next.timestamp().as_second() - now.as_second());
        u64::try_from(left).unwrap_or(0)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}
