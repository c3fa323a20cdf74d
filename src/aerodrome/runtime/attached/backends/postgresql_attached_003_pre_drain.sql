-- oldest compatible: 1
-- Servers that an operator has drained: no node puts sessions there. `address` is what it was attached as then.
CREATE TABLE attached_drain (
    endpoint text COLLATE "C" PRIMARY KEY,
    address  text COLLATE "C" NOT NULL
);
