-- oldest compatible: 1
-- Servers that an operator has drained: no node puts sessions there. `address` is what it was attached as then.
CREATE TABLE attached_drain (
    endpoint TEXT PRIMARY KEY,
    address  TEXT NOT NULL
);
