"""Settings of what a run writes down about itself. No torch here."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


class LedgerSettings(BaseModel):
    """The ledger of a run. None of it changes what is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    enabled: bool = Field(True, description="write every step, checkpoint and event down, chained by hashes")
    anchor: str = Field(
        "", description="file elsewhere that takes the ledger's head at every checkpoint; empty: none"
    )
    fingerprint: bool = Field(
        True, description="read all code and packages before the first step, and hold them against last time"
    )
    recheck_every: int = Field(
        100, ge=1, description="steps between two looks whether code was replaced in memory (fingerprint)"
    )
    weights_every: int = Field(
        0, ge=0, description="steps between two records of a digest of each weight, so that replay names the "
        "first one that differs; 0: at checkpoints alone",
    )  # fmt: skip
    audit_every: int = Field(
        0, ge=0, description="steps between two that a fresh process takes again beside the training, to "
        "compare what comes of them; 0: none",
    )  # fmt: skip
    data: bool = Field(
        True, description="read every image before the first step, and hold it against last time"
    )
    verify_with: str = Field(
        "",
        description="who must have signed the model that the run starts from: a file with a public key or "
        "certificates (PEM), or keyless:IDENTITY,ISSUER; empty: it need not be signed",
    )
    policy: str = Field(
        "",
        description="file that says whose approval a run needs; it starts with that alone; empty: nobody's",
    )
    approval: str = Field("", description="file of nextscale approve, with the signatures (policy)")
    accept: str = Field(
        "", description="go on in spite of the differences of this code, which the refusal names"
    )

    @model_validator(mode="after")
    def _check_use(self) -> LedgerSettings:
        for name, value in (("anchor", self.anchor), ("accept", self.accept)):
            if value and not self.enabled:
                raise ValueError(f"ledger.{name} {value} would have no effect with ledger.enabled false")
        for name in ("weights_every", "audit_every"):
            if getattr(self, name) and not self.enabled:
                raise ValueError(f"ledger.{name} would have no effect with ledger.enabled false")
        if bool(self.policy) != bool(self.approval):
            raise ValueError("ledger.policy and ledger.approval belong together: give both, or none")
        if self.policy and not (self.enabled and self.fingerprint and self.data):
            raise ValueError(
                f"ledger.policy {self.policy} needs ledger.enabled, ledger.fingerprint and ledger.data, "
                "which an approval is about"
            )
        default = LedgerSettings.model_fields["recheck_every"].default
        if self.recheck_every != default and not (self.enabled and self.fingerprint):
            raise ValueError(
                f"ledger.recheck_every {self.recheck_every} would have no effect without ledger.fingerprint: "
                "leave it out"
            )
        return self
