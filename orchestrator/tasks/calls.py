"""stub"""
import msgspec
class Call(msgspec.Struct, frozen=True):
    name: str
    args: dict[str, str]
def serialise(call: Call) -> str:
    return f"API-Request: [{call.name}({', '.join(f'{k}={v!r}' for k,v in call.args.items())})]"
def parse_call(text): return None
def calls_match(a,b): return False
